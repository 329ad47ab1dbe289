//! The tools whose libraries are linked into the program of an image.

use std::{env, path::PathBuf};

use crate::{
    architecture::Architecture,
    process::{command, output_of},
    setup::RUSTC,
};

/// The toolchain of an image's program.
pub(super) struct Toolchain {
    pub(super) architecture: Architecture,
    /// Version of rustc.
    pub(super) rust: String,
    /// License texts of Rust's library. The file may be missing.
    pub(super) rust_licence: PathBuf,
    /// Debian's package of glibc.
    pub(super) libc: &'static str,
    /// Debian's package of GCC's library.
    pub(super) libgcc: String,
}

impl Toolchain {
    /// Returns the toolchain for an architecture.
    pub(super) fn of(architecture: Architecture) -> Result<Self, String> {
        let (rustc, gcc) = match architecture {
            Architecture::X86_64 => {
                (env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()), "cc".to_owned())
            }
            Architecture::Arm64 => (RUSTC.to_owned(), format!("{}-gcc", architecture.gnu())),
        };
        let gcc = output_of(&mut command(&gcc, &["-dumpversion"]))?;
        let gcc = gcc.split('.').next().unwrap_or_default();
        let rust = output_of(&mut command(&rustc, &["--version"]))?;
        let rust = rust.split(' ').nth(1).unwrap_or_default().to_owned();
        Ok(match architecture {
            Architecture::X86_64 => {
                let sysroot = output_of(&mut command(&rustc, &["--print", "sysroot"]))?;
                let rust_licence = PathBuf::from(sysroot).join("share/doc/rust/COPYRIGHT-library.html");
                let libgcc = format!("libgcc-{gcc}-dev");
                Self { architecture, rust, rust_licence, libc: "libc6-dev", libgcc }
            }
            Architecture::Arm64 => {
                let rust_licence = PathBuf::from("/usr/share/doc/rustc-web/copyright");
                let libgcc = format!("libgcc-{gcc}-dev-arm64-cross");
                Self { architecture, rust, rust_licence, libc: "libc6-dev-arm64-cross", libgcc }
            }
        })
    }
}
