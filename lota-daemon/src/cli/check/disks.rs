//! Checks the cache folders.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use lota_cache::{self, AfterWrite, DiskPlan, Encryption, pins_file};
use nix::{
    sys::statfs::{FsType, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs},
    unistd::{AccessFlags, access},
};

use super::CheckReport;
use crate::{
    admin::node_status::text::{bytes, count},
    cluster::PinFile,
    config::Config,
};

pub(super) fn check(report: &mut CheckReport<'_>, config: &Config) {
    let mut devices: Vec<(u64, &Path)> = Vec::new();
    for disk in &config.cache.disks {
        // Missing folders are created, in the nearest existing one.
        let Some(there) = disk.folder.ancestors().find(|path| path.exists()) else { continue };
        if !there.is_dir() {
            report.fail("cache", format!("{} is not a folder", there.display()), "set another cache.folder");
            continue;
        }
        if let Err(error) = access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
            let what = format!("{} cannot be written: {error}", there.display());
            report.fail("cache", what, "make it writable for the daemon's user, or set another cache.folder");
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
                "use one folder per disk: two folders on one disk are not faster, and both fail together",
            );
        }
        devices.push((device, &disk.folder));
    }
    let (low, high) = (config.cache.low_percent, config.cache.high_percent);
    if config.cache.after_write == AfterWrite::Keep && low == high {
        report.warn(
            "cache",
            format!("cache.low_percent and cache.high_percent are both {high}: a full cache has no room for uploads (cache.after_write)"),
            "reduce cache.low_percent",
        );
    }
    if let Some(first) = config.cache.disks.first() {
        pins(report, &pins_file(&first.folder));
    }
}

fn pins(report: &mut CheckReport<'_>, file: &Path) {
    let why = match PinFile::read(file) {
        Ok(Ok(pins)) if pins.pins().next().is_none() => return,
        Ok(Ok(pins)) => {
            let (number, all) =
                pins.pins().fold((0, 0_u64), |(number, all), (_, pin)| (number + 1, all.saturating_add(pin)));
            return report.ok("cache", format!("{} of {}", count(number, "pin"), bytes(all)));
        }
        Ok(Err(why)) => why.to_string(),
        Err(error) => error.to_string(),
    };
    report.warn(
        "cache",
        format!("cannot read the pins in {}: {why}", file.display()),
        "the daemon gets them from other nodes; of a single node, set them again with `lota cache pin` after \
         moving the file away",
    );
}

fn room(report: &mut CheckReport<'_>, config: &Config, disk: &DiskPlan, there: &Path) {
    let DiskPlan { folder, capacity } = disk;
    let Ok(free) = lota_cache::free(there) else { return };
    let held = lota_cache::usage(folder).map(|usage| usage.bytes).unwrap_or_default();
    let usable = (free + held).saturating_sub(config.cache.min_free.0);
    let what =
        format!("{}: {} of {} can be used", folder.display(), bytes(usable.min(*capacity)), bytes(*capacity));
    if usable >= *capacity {
        return report.ok("cache", what);
    }
    let hint = "placement relies on the capacity: reduce cache.capacity or cache.min_free";
    if usable == 0 {
        return report.fail("cache", what, format!("nothing can be cached; {hint}"));
    }
    report.warn("cache", what, hint);
}

fn medium(report: &mut CheckReport<'_>, disk: &DiskPlan, there: &Path) {
    let kind = statfs(there).map(|found| found.filesystem_type());
    let is = |kind_: FsType| kind.as_ref().is_ok_and(|kind| *kind == kind_);
    let folder = disk.folder.display();
    if is(OVERLAYFS_SUPER_MAGIC) {
        report.warn(
            "cache",
            format!("{folder} is in the container's own file system"),
            "mount a disk of the node there: the cache would be lost with the container",
        );
    } else if is(TMPFS_MAGIC) {
        let fix = "use a disk: a tmpfs is lost on reboot and counts as the daemon's memory";
        report.warn("cache", format!("{folder} is memory (tmpfs)"), fix);
    }
}

fn encryption(report: &mut CheckReport<'_>, config: &Config, disk: &DiskPlan, there: &Path) {
    let encryption = config.cache.encryption;
    let folder = disk.folder.display();
    match (encryption, lota_cache::can_encrypt(there)) {
        (Encryption::Off, _) => {}
        (_, Ok(true)) => report.ok("cache", format!("{folder}: its file system supports encryption")),
        (Encryption::Required, can) => {
            let why = can.err().map(|error| format!(": {error}")).unwrap_or_default();
            report.fail(
                "cache",
                format!(
                    "{folder}: its file system does not support encryption{why}, and cache.encryption is \"required\""
                ),
                "for ext4: `tune2fs -O encrypt DEVICE`; or set cache.encryption to \"auto\"",
            );
        }
        (Encryption::Auto, _) => report.warn(
            "cache",
            format!("{folder}: cached objects will not be encrypted"),
            "for ext4: `tune2fs -O encrypt DEVICE`; or set cache.encryption to \"off\" to accept this",
        ),
    }
}
