//! JSON documents merged into others (RFC 7396): how a declaration changes what a driver makes of it.

use serde_json::{Map, Value};

/// Merges `patch` into `target`: objects member by member, `null` removes, anything else replaces.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            members.remove(name);
        } else {
            merge(members.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn merged(mut target: Value, patch: &Value, expected: &Value) {
        merge(&mut target, patch);
        assert_eq!(target, *expected);
    }

    /// The examples of the RFC's appendix that differ in kind.
    #[test]
    fn documents_are_merged() {
        merged(json!({"a":"b"}), &json!({"b":"c"}), &json!({"a":"b","b":"c"}));
        merged(json!({"a":"b","b":"c"}), &json!({"a":null}), &json!({"b":"c"}));
        merged(json!({"a":["b"]}), &json!({"a":"c"}), &json!({"a":"c"}));
        merged(json!({"a":{"b":"c"}}), &json!({"a":{"b":"d","c":null}}), &json!({"a":{"b":"d"}}));
        merged(json!([1, 2]), &json!({"a":"b","c":null}), &json!({"a":"b"}));
        merged(json!({}), &json!({"a":{"bb":{"ccc":null}}}), &json!({"a":{"bb":{}}}));
    }
}
