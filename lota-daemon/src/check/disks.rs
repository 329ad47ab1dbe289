//! Where objects are to be kept.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use indicatif::BinaryBytes;
use nix::{
    sys::statfs::{FsType, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs},
    unistd::{AccessFlags, access},
};

use super::Report;
use crate::{
    cache::{self, DiskPlan, Encryption},
    config::Config,
};

pub(super) fn check(report: &mut Report<'_>, config: &Config) {
    let mut devices: Vec<(u64, &Path)> = Vec::new();
    for disk in &config.cache.disks {
        // What is not there yet is made, in the nearest folder that is.
        let Some(there) = disk.folder.ancestors().find(|path| path.exists()) else { continue };
        if !there.is_dir() {
            report.fail("cache", format!("{} is not a folder", there.display()), "name another cache.folder");
            continue;
        }
        if let Err(error) = access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
            let what = format!("{} cannot be written: {error}", there.display());
            report.fail("cache", what, "give the daemon's user the right to, or name another cache.folder");
            continue;
        }
        room(report, config, disk, there);
        medium(report, disk, there);
        encryption(report, config, disk, there);
        let device = fs::metadata(there).map(|metadata| metadata.dev()).unwrap_or_default();
        if let Some((_, other)) = devices.iter().find(|(known, _)| *known == device) {
            report.warn(
                "cache",
                format!("{} and {} are on one disk", other.display(), disk.folder.display()),
                "give each disk one folder: what is placed on two is read no faster, and both fail at once",
            );
        }
        devices.push((device, &disk.folder));
    }
}

fn room(report: &mut Report<'_>, config: &Config, disk: &DiskPlan, there: &Path) {
    let DiskPlan { folder, capacity } = disk;
    let size = |bytes| BinaryBytes(bytes).to_string();
    let Ok(free) = cache::free(there) else { return };
    let held = cache::usage(folder).map(|usage| usage.bytes).unwrap_or_default();
    let usable = (free + held).saturating_sub(config.cache.min_free.0);
    let what =
        format!("{}: {} of {} can be used", folder.display(), size(usable.min(*capacity)), size(*capacity));
    if usable >= *capacity {
        return report.ok("cache", what);
    }
    let hint =
        "placement counts on the capacity: set cache.capacity to what there is, or cache.min_free lower";
    if usable == 0 {
        return report.fail("cache", what, format!("nothing would be cached; {hint}"));
    }
    report.warn("cache", what, hint);
}

fn medium(report: &mut Report<'_>, disk: &DiskPlan, there: &Path) {
    let kind = statfs(there).map(|found| found.filesystem_type());
    let is = |kind_: FsType| kind.as_ref().is_ok_and(|kind| *kind == kind_);
    let folder = disk.folder.display();
    if is(OVERLAYFS_SUPER_MAGIC) {
        report.warn(
            "cache",
            format!("{folder} is a container's own layer"),
            "mount a disk of the node there: what is cached would go with the container",
        );
    } else if is(TMPFS_MAGIC) {
        let todo =
            "it is gone after a restart of the machine, and counts as the daemon's memory: name a disk";
        report.warn("cache", format!("{folder} is memory (tmpfs)"), todo);
    }
}

fn encryption(report: &mut Report<'_>, config: &Config, disk: &DiskPlan, there: &Path) {
    let wanted = config.cache.encryption;
    let folder = disk.folder.display();
    match (wanted, cache::can_encrypt(there)) {
        (Encryption::Off, _) => {}
        (_, Ok(true)) => report.ok("cache", format!("{folder}: its file system can encrypt")),
        (Encryption::Required, can) => {
            let why = can.err().map(|error| format!(": {error}")).unwrap_or_default();
            report.fail(
                "cache",
                format!(
                    "{folder}: its file system cannot encrypt{why}, and cache.encryption is \"required\""
                ),
                "for ext4: `tune2fs -O encrypt DEVICE`; or set cache.encryption to \"auto\"",
            );
        }
        (Encryption::Auto, _) => report.warn(
            "cache",
            format!("{folder}: what is cached will not be encrypted"),
            "for ext4: `tune2fs -O encrypt DEVICE`; or set cache.encryption to \"off\", if that is meant",
        ),
    }
}
