//! What benchmarks read: sparse files that an nginx serves as a gateway would, and URLs that anyone may read them by.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use hyper::Method;
use lota_daemon::{
    placement::{NodeName, Placement},
    s3::ObjectName,
};

use crate::lab::{
    ADMIN, NODES,
    raw::{Request, Signing},
};

/// The bucket of all of them.
pub const BUCKET: &str = "bench";

/// Puts so many objects of these bytes into a cache folder by name alone: their files are empty, and a restart reads
/// names.
///
/// # Errors
/// If a file cannot be made.
pub fn name_objects(cache: &Path, objects: usize, bytes: u64) -> Result<()> {
    for object in 0..objects {
        let version =
            format!("{:032x}", (object as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        let name = format!("{version}-{object:032x}-{bytes:x}.object");
        File::create(cache.join("v2").join(&version[..2]).join(name))?;
    }
    Ok(())
}

/// Objects that node 1 owns.
#[derive(Debug)]
pub struct Objects {
    root: PathBuf,
    placement: Placement,
    made: u64,
    /// The paths and queries by which they are read, in the order of their making.
    pub urls: Vec<String>,
}

impl Objects {
    /// None yet, below `lab`, behind `gateway`, for nodes of one capacity.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn new(lab: &Path, gateway: &str) -> Result<Self> {
        let root = lab.join("objects");
        fs::create_dir_all(root.join(BUCKET))?;
        let nodes = (1..=NODES).map(|node| (NodeName(format!("n{node}")), 1 << 30));
        Ok(Self { root, placement: Placement::new(gateway, nodes), made: 0, urls: Vec::new() })
    }

    /// Where they are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes one of so many bytes; what reads it.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn make(&mut self, bytes: u64) -> Result<Request> {
        loop {
            let key = format!("object-{}", self.made);
            self.made += 1;
            let name = ObjectName::from_parts(BUCKET, &key, None).context("no such name")?;
            if self.placement.first(&name, 1).first().is_none_or(|first| first.0 != "n1") {
                continue;
            }
            File::create(self.root.join(BUCKET).join(&key))?.set_len(bytes)?;
            let get = Request::new(Method::GET, "cwlota.com", &format!("/{BUCKET}/{key}"));
            let get = get.sign(&ADMIN, Signing::Presigned)?;
            self.urls.push(get.target.clone());
            return Ok(get);
        }
    }
}
