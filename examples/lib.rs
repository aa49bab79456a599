//! Examples: one file per task beside this one. `cargo run --example quickstart` runs the first to read.
