//! Builds the container image: one static program from scratch, with buildah, which needs no daemon. `docs/image.md`
//! describes its contents and how builds are reproducible.

mod licences;
mod program;
mod sbom;
mod started;
mod suite;
mod toolchain;

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

pub(crate) use self::suite::suite;
use self::{program::program, toolchain::Toolchain};
use crate::{
    architecture::Architecture,
    demo,
    process::{ROOT, command, output_of, run},
    setup::{self, ImageTools},
};

/// Version of the workspace, which is LOTA's.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Maximum size of a release's archive, in bytes.
const MAX_ARCHIVE: u64 = 40 << 20;
/// Folders that a container mounts something on.
const MOUNTED_ON: [&str; 6] = ["dev", "etc/lota", "proc", "run/lota", "sys", "var/cache/lota"];

/// A built image.
struct Image {
    archive: PathBuf,
    /// Digest of its manifest.
    digest: String,
    tag: String,
}

/// Runs `cargo xtask image`.
pub(crate) fn image(arguments: &[&str]) -> Result<(), String> {
    let (mut release, mut architecture) = (true, Architecture::X86_64);
    let mut tag = format!("localhost/lota:{VERSION}");
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match *argument {
            "--release" => release = true,
            "--dev" => release = false,
            "--arch" => architecture = named(arguments.next().ok_or("--arch needs a value")?)?,
            "--tag" => (*arguments.next().ok_or("--tag needs a value")?).clone_into(&mut tag),
            other => {
                return Err(format!(
                    "unknown argument `{other}` of `image`; use --release, --dev, --arch or --tag"
                ));
            }
        }
    }
    let tools = setup::image_tools()?;
    let program = program(architecture, release)?;
    let Image { archive, digest, tag } = build(&tools, architecture, &program, &tag)?;
    let bytes = fs::metadata(&archive).map_err(|error| error.to_string())?.len();
    if release && bytes > MAX_ARCHIVE {
        return Err(format!("{} has {bytes} bytes; the maximum is {MAX_ARCHIVE}", archive.display()));
    }
    println!("{tag}\n{digest}\n{:.1} MiB in {}", mebibytes(bytes), archive.display());
    Ok(())
}

/// Builds an image of an unoptimized program, and returns its archive.
pub(crate) fn for_tests() -> Result<PathBuf, String> {
    let tools = setup::image_tools()?;
    let program = program(Architecture::X86_64, false)?;
    let tag = format!("localhost/lota:{VERSION}");
    let archive = build(&tools, Architecture::X86_64, &program, &tag)?.archive;
    fs::canonicalize(&archive).map_err(|error| format!("{}: {error}", archive.display()))
}

/// Returns the architecture with this name in container images.
fn named(name: &str) -> Result<Architecture, String> {
    let all = [Architecture::X86_64, Architecture::Arm64];
    let named = all.into_iter().find(|architecture| architecture.debian() == name);
    named.ok_or_else(|| format!("unknown architecture `{name}`; use amd64 or arm64"))
}

/// Builds the image of a program.
fn build(tools: &ImageTools, architecture: Architecture, program: &Path, tag: &str) -> Result<Image, String> {
    let folder = folder(architecture);
    let root = folder.join("root");
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let (time, toolchain) = (time()?, Toolchain::of(architecture)?);
    remove(&root)?;
    for place in MOUNTED_ON {
        fs::create_dir_all(root.join(place)).map_err(failed)?;
    }
    put(&root, "usr/bin/lota", &fs::read(program).map_err(failed)?)?;
    put(&root, "etc/ssl/certs/ca-certificates.crt", &certificates(tools)?)?;
    let licence = Path::new(ROOT).join("LICENSE");
    put(&root, "usr/share/doc/lota/LICENSE", &fs::read(licence).map_err(failed)?)?;
    put(&root, "usr/share/doc/lota/third-party.txt", licences::gather(tools, &toolchain)?.as_bytes())?;
    let sbom = sbom::make(tools, &toolchain, &root, &date(&time)?)?;
    fs::write(folder.join("sbom.cdx.json"), &sbom).map_err(failed)?;
    put(&root, "usr/share/lota/sbom.cdx.json", sbom.as_bytes())?;
    close(&root).map_err(failed)?;

    let created = format!("CREATED={}", date(&time)?);
    let version = format!("VERSION={VERSION}");
    let revision = format!("REVISION={}", revision());
    let mut bud = buildah(tools, &folder)?;
    bud.args(["bud", "--quiet", "--isolation", "chroot", "--pull-never", "--no-cache", "--format", "oci"]);
    bud.args(["--identity-label=false", "--timestamp", &time]).arg("--signature-policy").arg(&tools.policy);
    bud.args(["--build-arg", &created, "--build-arg", &version, "--build-arg", &revision]);
    bud.args(["--platform", &format!("linux/{}", architecture.debian())]);
    bud.args(["--tag", tag, "--file", "deploy/image/Containerfile"]).arg(&root);
    run("building the image", bud.stdout(std::process::Stdio::null()))?;

    let layout = folder.join("oci");
    remove(&layout)?;
    let digest = folder.join("digest");
    let mut push = buildah(tools, &folder)?;
    push.args(["push", "--quiet", "--signature-policy"]).arg(&tools.policy).arg("--digestfile").arg(&digest);
    push.arg(tag).arg(format!("oci:{}:{tag}", layout.display()));
    run("writing the image", &mut push)?;
    // buildah would write the archive with the current time in it.
    let archive = folder.join("lota.oci.tar");
    let mut pack = command("tar", &["--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    pack.args(["--format=gnu", "--mode=a+r,u+w,go-w"]).arg(format!("--mtime=@{time}")).arg("-C").arg(&layout);
    pack.arg("-cf").arg(&archive).args(["blobs", "index.json", "oci-layout"]);
    run("packing the image", &mut pack)?;
    remove(&layout)?;
    remove(&folder.join("store"))?;
    let digest = fs::read_to_string(digest).map_err(failed)?;
    Ok(Image { archive, digest, tag: tag.to_owned() })
}

/// Returns a buildah command that keeps all its files in our folder.
fn buildah(tools: &ImageTools, folder: &Path) -> Result<Command, String> {
    let store = folder.join("store");
    let elsewhere = store.join("var");
    fs::create_dir_all(&elsewhere).map_err(|error| format!("{}: {error}", elsewhere.display()))?;
    // buildah always has a cache in /var/lib, so it gets a private mount there.
    let mut buildah = command("unshare", &["--mount", "sh", "-c"]);
    buildah.arg("mount --bind \"$1\" /var/lib && shift && exec \"$@\"").arg("sh").arg(&elsewhere);
    buildah.arg(&tools.buildah).env("LD_LIBRARY_PATH", &tools.libraries);
    buildah.arg("--root").arg(store.join("root")).arg("--runroot").arg(store.join("run"));
    buildah.args(["--storage-driver", "vfs", "--registries-conf"]).arg(&tools.registries);
    Ok(buildah)
}

/// Returns Debian's certificates from its package, since the machine may trust other authorities.
fn certificates(tools: &ImageTools) -> Result<Vec<u8>, String> {
    let folder = &tools.certificates;
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).map_err(failed)?.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut bundle = Vec::new();
    for path in paths {
        bundle.extend(fs::read(path).map_err(failed)?);
        if !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
    }
    Ok(bundle)
}

/// Writes a file of the image.
fn put(root: &Path, name: &str, content: &[u8]) -> Result<(), String> {
    let path = root.join(name);
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&path, content))
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Removes write permission from all files, so that the builder's umask has no effect. Root can still write to
/// folders, since a runtime gives a tmpfs the mode of the folder below it.
fn close(path: &Path) -> std::io::Result<()> {
    let is_folder = path.is_dir();
    if is_folder {
        for entry in fs::read_dir(path)? {
            close(&entry?.path())?;
        }
    }
    let is_program = path.parent().is_some_and(|parent| parent.ends_with("usr/bin"));
    let mode = match (is_folder, is_program) {
        (true, _) => 0o755,
        (false, true) => 0o555,
        (false, false) => 0o444,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Returns the folder that images of an architecture are built in.
fn folder(architecture: Architecture) -> PathBuf {
    demo::target().join(match architecture {
        Architecture::X86_64 => "image",
        Architecture::Arm64 => "image-arm64",
    })
}

fn remove(folder: &Path) -> Result<(), String> {
    match fs::remove_dir_all(folder) {
        Err(error) if folder.exists() => Err(format!("{}: {error}", folder.display())),
        _ => Ok(()),
    }
}

/// Returns the time stamp of everything in the image: SOURCE_DATE_EPOCH, or else the time of the commit.
fn time() -> Result<String, String> {
    let epoch = env::var("SOURCE_DATE_EPOCH").ok();
    let time = epoch.or_else(|| output_of(&mut command("git", &["log", "-1", "--format=%ct"])).ok());
    let time = time.ok_or("this is not a git checkout; set SOURCE_DATE_EPOCH")?;
    match time.trim().parse::<u32>() {
        Ok(seconds) => Ok(seconds.to_string()),
        Err(_) => Err(format!("SOURCE_DATE_EPOCH must be seconds since 1970, not `{time}`")),
    }
}

/// Returns the commit, marked if there are uncommitted changes.
fn revision() -> String {
    let describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"];
    output_of(&mut command("git", &describe)).unwrap_or_else(|_| "unknown".to_owned())
}

fn date(time: &str) -> Result<String, String> {
    output_of(&mut command("date", &["--utc", &format!("--date=@{time}"), "+%Y-%m-%dT%H:%M:%SZ"]))
}

#[expect(clippy::cast_precision_loss, reason = "it is for showing")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1048576.0
}
