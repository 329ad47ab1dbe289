//! Builds the eBPF programs; `lib.rs` embeds the object file.
//!
//! Two toolchains work: Debian's `rustc-web`, which has a prebuilt `core` for BPF, or any nightly with
//! `rust-src`. Both need `bpf-linker`.

#[path = "build/btf.rs"]
mod btf;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const HELP: &str = "\
no toolchain for the kernel side was found. Either let the project install one (Debian 12, as root):
    cargo xtask setup
or install one yourself: a nightly toolchain with its sources, and a bpf-linker whose LLVM is not older than rustc's:
    rustup toolchain install nightly --component rust-src
    cargo install bpf-linker";

fn main() {
    let root = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("../../..");
    println!("cargo::rerun-if-changed=build");
    for watched in ["lota-ebpf", "lota-common", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-env-changed=PATH");
    match build(&root, &PathBuf::from(var("OUT_DIR"))) {
        Ok(object) => println!("cargo::rustc-env=LOTA_PROGRAMS={}", object.display()),
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
        }
    }
}

fn build(root: &Path, out: &Path) -> Result<PathBuf, String> {
    let linker = find_in_path("bpf-linker").ok_or(HELP)?;
    let mut cargo = if has_bpf_core() {
        let mut cargo = Command::new(DEBIAN_CARGO);
        // `asm_experimental_arch`, which aya-ebpf uses, is unstable; this allows it for this one build.
        cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1").arg("build");
        cargo
    } else if has_nightly() {
        let mut cargo = Command::new("rustup");
        cargo.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]).env_remove("RUSTC");
        cargo
    } else {
        return Err(HELP.to_owned());
    };
    let architecture = var("CARGO_CFG_TARGET_ARCH");
    // Line information contains the paths of sources. They are remapped, so that the object does not depend on the folder.
    let place = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
    let cargo_home = cargo_home().unwrap_or_else(|| place.clone());
    let flags = [
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        &format!("--cfg=bpf_target_arch=\"{architecture}\""),
        &format!("-Clinker={}", linker.display()),
        &format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
        &format!("--remap-path-prefix={}=/lota", place.display()),
    ];
    let target_dir = out.join("ebpf");
    cargo
        .args(["--release", "--package", "lota-ebpf", "--bin", "lota-programs", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN")
        .current_dir(root);
    if cfg!(feature = "log") {
        cargo.args(["--features", "log"]);
    }
    let output = cargo.output().map_err(|error| format!("cannot run {cargo:?}: {error}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("building the kernel side failed ({cargo:?}):\n{errors}"));
    }
    for warning in
        String::from_utf8_lossy(&output.stderr).lines().filter(|line| line.starts_with("warning: "))
    {
        println!("cargo::warning=kernel side: {warning}");
    }
    let object = out.join("lota-programs");
    let built = target_dir.join(TARGET).join("release/lota-programs");
    let bytes = fs::read(&built).map_err(|error| format!("{}: {error}", built.display()))?;
    let named = btf::with_characters(bytes).ok_or("the kernel side has no type information of names")?;
    fs::write(&object, named).map_err(|error| format!("{}: {error}", object.display()))?;
    Ok(object)
}

fn has_bpf_core() -> bool {
    let Ok(output) = Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]).output() else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    Path::new(DEBIAN_CARGO).exists() && Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).exists()
}

fn has_nightly() -> bool {
    let sysroot = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    sysroot.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout);
        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").exists()
    })
}

/// Cargo's own bin directory too: it need not be on the PATH of whoever runs the build.
fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home().map(|home| home.join("bin")))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
}

fn var(name: &str) -> String {
    env::var_os(name).unwrap_or_default().into_string().unwrap_or_default()
}
