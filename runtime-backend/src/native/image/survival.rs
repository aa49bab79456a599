//! What is still whole after the machine lost its power.
//!
//! The kernel writes to the disk when it likes, and in an order of its own: after a power loss a record may be there and
//! the files that it tells of be empty. Forcing everything out for each image (fsync(2), syncfs(2)) would take longer than
//! unpacking it, for something that hardly ever happens to images that can nearly always be had again. So a record notes
//! the boot in which it was written. Within that boot the page cache is the truth. The first time that an image is asked
//! for in a later boot, its trees are added up, once, from the disk; what does not add up is made anew.

use super::disk::read_json;
use super::obtain::LayerRecord;
use super::store::{ImageRecord, Shared};
use std::path::Path;

/// Which boot this is (random(4)); nobody can tell without `/proc`, and then every record is of this one.
pub(super) fn this_boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}

impl Shared {
    /// The record of an unpacked layer, if the layer is there and what was unpacked.
    pub(super) async fn unpacked_layer(&self, place: &Path) -> Option<LayerRecord> {
        let record: LayerRecord = read_json(&place.join("layer.json"))?;
        // Where the boot is not known, on either side, nothing says that there was another one.
        if record.boot == self.boot || record.boot.is_empty() || self.boot.is_empty() {
            return Some(record);
        }
        let sum = self.unpacker.sum(&place.join("tree")).await.ok()?;
        (sum.digest == record.unpacked.sum.digest).then_some(record)
    }

    /// Whether all layers of an image are there. What is found whole in a later boot than it was written in is on the
    /// disk: it is not looked at again.
    pub(super) async fn has_layers(&self, path: &Path, record: &mut ImageRecord) -> bool {
        let place = |key: &String| self.disk.layer(self.unpacker.form(), key);
        if record.boot.as_ref().is_none_or(|boot| *boot == self.boot) {
            return record.layers.iter().all(|key| place(key).join("layer.json").exists());
        }
        for key in &record.layers {
            if self.unpacked_layer(&place(key)).await.is_none() {
                return false;
            }
        }
        record.boot = None;
        // A store that cannot be written to is of use all the same.
        let _ = self.disk.write_json(path, record);
        true
    }
}
