//! Images for pods, in the format of `docker save`.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::lab::run;

/// Image of the process that holds a pod's namespaces.
pub(super) const PAUSE: &str = "lab/pause:1";
/// Image with an S3 client.
pub const CLIENT: &str = "lab/client:1";
/// Commands of busybox in the images.
const APPLETS: [&str; 5] = ["cut", "httpd", "md5sum", "sh", "sleep"];
/// A loop that reads an object.
const READ: &str = include_str!("node/read.sh");

/// Creates the archive of the pause image.
pub(super) fn pause(folder: &Path, busybox: &Path) -> Result<PathBuf> {
    let root = Root::new(folder, "pause", busybox)?;
    root.pack(PAUSE, &["/bin/sleep", "1000000"])
}

/// Creates the archive of an image with the machine's curl, which signs for S3, with the libraries that it needs.
///
/// # Errors
/// If it cannot be created.
pub fn client(folder: &Path, busybox: &Path) -> Result<PathBuf> {
    let root = Root::new(folder, "client", busybox)?;
    let curl = run(Command::new("which").arg("curl"))?;
    root.add_program(Path::new(curl.trim()))?;
    let script = root.path("bin/read.sh");
    fs::write(&script, READ)?;
    root.pack(CLIENT, &["/bin/sh", "/bin/read.sh"])
}

/// The files of an image.
struct Root {
    folder: PathBuf,
}

impl Root {
    fn new(folder: &Path, name: &str, busybox: &Path) -> Result<Self> {
        let root = Self { folder: folder.join(name) };
        for place in ["bin", "etc", "lib", "proc", "sys", "tmp", "dev"] {
            fs::create_dir_all(root.path(place))?;
        }
        fs::copy(busybox, root.path("bin/busybox"))?;
        for applet in APPLETS {
            symlink("busybox", root.path("bin").join(applet))?;
        }
        Ok(root)
    }

    fn path(&self, place: &str) -> PathBuf {
        self.folder.join("root").join(place)
    }

    /// Adds a program of the machine and its libraries.
    fn add_program(&self, program: &Path) -> Result<()> {
        let listed = run(Command::new("ldd").arg(program))?;
        let libraries: BTreeSet<&str> =
            listed.split_whitespace().filter(|word| word.starts_with('/')).collect();
        let name = program.file_name().context("not a program")?;
        fs::copy(program, self.path("bin").join(name))?;
        for library in libraries {
            let place = self.path(library.trim_start_matches('/'));
            place.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::copy(library, place)?;
        }
        Ok(())
    }

    fn pack(&self, tag: &str, entrypoint: &[&str]) -> Result<PathBuf> {
        let tar = |from: &Path, archive: &Path, files: &[&str]| {
            run(Command::new("tar").arg("-C").arg(from).arg("-cf").arg(archive).args(files)).map(|_| ())
        };
        let layer = self.folder.join("layer.tar");
        tar(&self.folder.join("root"), &layer, &["."])?;
        let digest = hex::encode(Sha256::digest(fs::read(&layer)?));
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Entrypoint": entrypoint, "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        });
        let manifest = json!([{ "Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"] }]);
        fs::write(self.folder.join("config.json"), config.to_string())?;
        fs::write(self.folder.join("manifest.json"), manifest.to_string())?;
        let archive = self.folder.with_extension("tar");
        tar(&self.folder, &archive, &["config.json", "layer.tar", "manifest.json"])?;
        Ok(archive)
    }
}
