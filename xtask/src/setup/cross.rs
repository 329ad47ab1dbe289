//! The cross-compiler for arm64: Debian's rustc with Debian's standard library of that architecture, and Debian's gcc.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{foreign, packages, to_build};
use crate::{
    architecture::Architecture,
    process::{ROOT, command, for_checkout, output_of},
};

/// Debian's packages for cross-building, apart from the standard library.
const TO_CROSS_BUILD: [&str; 4] =
    ["rustc-web", "cargo-web", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];
/// Debian's rustc.
pub(crate) const RUSTC: &str = "/usr/bin/rustc";
const STANDARD_LIBRARY: &str = "libstd-rust-web-dev";
const ARCHITECTURE: Architecture = Architecture::Arm64;

/// A compiler for arm64.
pub(crate) struct CrossCompiler {
    /// Folder with the standard library.
    sysroot: PathBuf,
}

impl CrossCompiler {
    /// Installs the compiler. Its standard library is unpacked below `target/`, so that the machine keeps one architecture.
    pub(crate) fn get() -> Result<Self, String> {
        to_build()?;
        packages(&TO_CROSS_BUILD)?;
        // rustc refuses the standard library of any other version.
        let version = output_of(&mut command("dpkg-query", &["-W", "-f", "${Version}", "rustc-web"]))?;
        let place = folder().join(format!("std-{version}"));
        foreign::unpacked_alone(&format!("{STANDARD_LIBRARY}={version}"), ARCHITECTURE, &place)?;
        let sysroot = place.join("usr");
        let sysroot =
            fs::canonicalize(&sysroot).map_err(|error| format!("{}: {error}", sysroot.display()))?;
        Ok(Self { sysroot })
    }

    /// Returns a cargo command that builds in a folder of its own, with these flags of rustc.
    pub(crate) fn cargo(&self, subcommand: &str, arguments: &[&str], flags: &[String]) -> Command {
        let target = ARCHITECTURE.rust_target();
        let mut cargo = for_checkout(Command::new("/usr/bin/cargo"));
        cargo.args([subcommand, "--target", target]).args(arguments);
        cargo.env("RUSTC", RUSTC).env("CARGO_TARGET_DIR", folder()).env_remove("RUSTFLAGS");
        let mut all = vec![format!("--sysroot={}", self.sysroot.display())];
        all.extend_from_slice(flags);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", all.join("\x1f"));
        let linker = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
        cargo.env(linker, format!("{}-gcc", ARCHITECTURE.gnu()));
        cargo
    }

    /// Returns the path of a program, given below the folder of a profile.
    pub(crate) fn built(&self, name: &str) -> PathBuf {
        folder().join(ARCHITECTURE.rust_target()).join(name)
    }
}

/// Returns the folder of everything that is built for arm64.
fn folder() -> PathBuf {
    Path::new(ROOT).join("target/arm64")
}
