//! Builds the static program of an image.

use std::{env, fs, path::PathBuf};

use crate::{
    architecture::Architecture,
    demo,
    process::{ROOT, cargo, run},
    setup::{self, CrossCompiler},
};

const STATIC: &str = "target-feature=+crt-static";

/// Builds the program, and returns its path.
pub(super) fn program(architecture: Architecture, release: bool) -> Result<PathBuf, String> {
    setup::to_build()?;
    let cross = match architecture {
        Architecture::X86_64 => None,
        Architecture::Arm64 => Some(CrossCompiler::get()?),
    };
    if !release {
        // The flag is passed to the last step only, so that results of other builds of this package are reused. The
        // suites' programs have other features: here, the daemon is built with those of releases. (The precompiled
        // standard library is linked in either way.)
        let link = ["--quiet", "--package", "lota-daemon", "--bin", "lota", "--", "-C", STATIC];
        let (mut build, built) = match &cross {
            Some(cross) => (cross.cargo("rustc", &link, &[]), cross.built("debug/lota")),
            None => {
                let mut build = cargo(&["rustc"]);
                build.args(link);
                (build, demo::program("debug/lota").into())
            }
        };
        run("building a static lota", &mut build)?;
        return Ok(built);
    }
    let cargo_home =
        env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")));
    let cargo_home = cargo_home.map_err(|_| "neither CARGO_HOME nor HOME is set")?;
    let root = fs::canonicalize(ROOT).map_err(|error| error.to_string())?;
    // The paths of the sources, in Rust, C and assembly, must not be in the program.
    let places = [(root.display().to_string(), "/lota"), (cargo_home, "/cargo")];
    let mut flags = vec!["-C".to_owned(), STATIC.to_owned()];
    flags.extend(places.iter().map(|(place, name)| format!("--remap-path-prefix={place}={name}")));
    let for_c = places.map(|(place, name)| format!("-ffile-prefix-map={place}={name}"));
    let arguments = ["--release", "--locked", "--package", "lota-daemon"];
    let (mut build, built) = match &cross {
        Some(cross) => (cross.cargo("build", &arguments, &flags), cross.built("release/lota")),
        None => {
            let target = architecture.rust_target();
            let mut build = cargo(&["build", "--target", target]);
            build.args(arguments).env_remove("RUSTFLAGS");
            build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
            (build, demo::program(&format!("{target}/release/lota")).into())
        }
    };
    build.env("CFLAGS", for_c.join(" "));
    // The allocator's C code contains its build time. The commit's time would be outdated in incremental builds.
    build.env("SOURCE_DATE_EPOCH", "0");
    run("building a static lota, optimized (some minutes)", &mut build)?;
    Ok(built)
}
