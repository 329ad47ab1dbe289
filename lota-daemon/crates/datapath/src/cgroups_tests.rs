use super::*;

const UID: &str = "3f2c9a1e-0b6d-4a57-9f55-2d1f0c7b8a90";
const HASH: &str = "5a3ef0a4a1a6f6f0b0a7b7c8d9e0f1a2";

/// A folder on a plain file system, as if it were the hierarchy.
struct Made(PathBuf);

impl Made {
    fn with(name: &str, folders: &[&str]) -> Self {
        let made = Self(std::env::temp_dir().join(format!("lota-cgroups-{name}-{}", std::process::id())));
        for folder in folders {
            fs::create_dir_all(made.0.join(folder)).unwrap();
        }
        made
    }

    fn pods(&self) -> PodCgroups {
        CgroupHierarchy { folder: self.0.clone(), level: 1 }.pods().unwrap()
    }

    fn cgroup(&self, folder: &str, level: u32) -> PodCgroup {
        PodCgroup { id: self.0.join(folder).metadata().unwrap().ino(), level }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn pods_are_found_by_the_names_of_both_drivers() {
    let escaped = UID.replace('-', "_");
    for (name, guaranteed, burstable, static_pod) in [
        (
            "cgroupfs",
            format!("kubepods/pod{UID}"),
            "kubepods/burstable/podb".to_owned(),
            format!("kubepods/besteffort/pod{HASH}"),
        ),
        (
            "systemd",
            format!("kubepods.slice/kubepods-pod{escaped}.slice"),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podb.slice".to_owned(),
            format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{HASH}.slice"),
        ),
        (
            "root",
            format!("own-kubepods.slice/own-kubepods-pod{escaped}.slice"),
            "own-kubepods.slice/own-kubepods-burstable.slice/own-kubepods-burstable-podb.slice".to_owned(),
            format!(
                "own-kubepods.slice/own-kubepods-besteffort.slice/own-kubepods-besteffort-pod{HASH}.slice"
            ),
        ),
    ] {
        let made = Made::with(name, &[&guaranteed, &burstable, &static_pod]);
        let found = made.pods();
        assert_eq!(found.levels, [3, 4]);
        let kubepods = guaranteed.split('/').next().unwrap();
        assert_eq!(found.kubepods, [made.cgroup(kubepods, 2).id, 0], "{name}");
        let expected = [
            (UID.to_owned(), made.cgroup(&guaranteed, 3)),
            ("b".to_owned(), made.cgroup(&burstable, 4)),
            (HASH.to_owned(), made.cgroup(&static_pod, 4)),
        ];
        assert_eq!(found.by_uid, expected.into(), "{name}");
    }
}

#[test]
fn folders_of_pods_cannot_name_other_pods() {
    let made = Made::with(
        "inner",
        &[
            "kubepods/poda/container/podx",
            "kubepods/poda/podx",
            "kubepods/poda/kubepods/podx",
            "kubepods/burstable/podb/burstable/podx",
            "kubepods/other/podx",
            "system.slice/kubepods/podx",
            "docker/c/kubepods.slice/kubepods-podx.slice",
            "kubepods.slice/podx",
            "kubepods.slice/other-podx.slice",
            "kubepods/pod",
            "kubepods/pod..x",
        ],
    );
    let found: Vec<String> = made.pods().by_uid.into_keys().collect();
    assert_eq!(found, ["a", "b"]);
}

#[test]
fn a_uid_with_two_cgroups_has_none() {
    let made = Made::with("twice", &["kubepods/poda", "kubepods/burstable/poda", "kubepods/podb"]);
    let found: Vec<String> = made.pods().by_uid.into_keys().collect();
    assert_eq!(found, ["b"]);
}

#[test]
fn only_a_version_2_hierarchy_is_accepted() {
    let problem = CgroupHierarchy::open(Path::new("/tmp")).unwrap_err();
    assert!(matches!(problem, CgroupProblem::NotVersion2) && !problem.can_be_configured(), "{problem}");
    let problem = CgroupHierarchy::open(Path::new("/nonexistent")).unwrap_err();
    assert!(matches!(problem, CgroupProblem::Unreadable(_)) && problem.can_be_configured(), "{problem}");
    assert!(CgroupProblem::NoPods.can_be_configured() && !CgroupProblem::NoRoot.can_be_configured());
}
