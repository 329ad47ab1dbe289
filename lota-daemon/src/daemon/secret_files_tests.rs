use std::{os::unix::fs::symlink, path::Path, sync::Arc};

use prometheus_client::{encoding::text::encode, registry::Registry};

use super::*;

const NONE: RefreshedSecrets = RefreshedSecrets { applied: Vec::new(), trouble: Vec::new() };

struct Followed {
    files: SecretFiles,
    metrics: Metrics,
    value: Reloadable<String>,
    path: PathBuf,
}

/// Follows a file whose content must begin with `key`.
fn follow(path: PathBuf) -> Followed {
    let metrics = Metrics::default();
    let files = SecretFiles::new(metrics.clone());
    let name = path.display().to_string();
    let parse = move |text: &str| {
        anyhow::ensure!(text.starts_with("key"), "{name}: must begin with `key`");
        Ok(text.to_owned())
    };
    let value = files.follow_text(SecretKind::ClusterKey, path.clone(), parse).unwrap();
    Followed { files, metrics, value, path }
}

impl Followed {
    /// Refreshes, and verifies the value, and whether it has changed just now.
    fn expect(&self, has_changed: bool, value: &str) {
        let refreshed = self.files.refresh();
        let applied = if has_changed { vec![SecretKind::ClusterKey] } else { Vec::new() };
        assert_eq!(refreshed, RefreshedSecrets { applied, trouble: Vec::new() });
        assert_eq!(*self.value.get(), value);
    }

    /// Refreshes, and verifies that the value is still `kept`.
    fn expect_trouble(&self, hint: &str, kept: &str) {
        let RefreshedSecrets { applied, trouble } = self.files.refresh();
        let path = self.path.display().to_string();
        assert!(applied.is_empty() && trouble.len() == 1, "{applied:?} {trouble:?}");
        assert!(trouble[0].contains(hint) && trouble[0].contains(&path), "{trouble:?}");
        assert!(!trouble[0].contains("hunter2"), "{trouble:?}");
        assert_eq!(*self.value.get(), kept);
    }

    /// Verifies the counts of changes that were applied and that were not.
    fn expect_counts(&self, applied: u64, failed: u64) {
        let mut registry = Registry::default();
        registry.register("lota_secret_reloads", "", self.metrics.secret_reloads.clone());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for (result, count) in [("applied", applied), ("failed", failed)] {
            let line =
                format!("lota_secret_reloads_total{{file=\"cluster-key\",result=\"{result}\"}} {count}\n");
            assert!(text.contains(&line), "no {line} in {text}");
        }
    }
}

/// Replaces a file as editors and `mv` do.
fn rename(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn a_file_that_is_replaced_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "key 1").unwrap();
    let followed = follow(path.clone());
    let in_use = followed.value.get();
    followed.expect(false, "key 1");
    followed.expect_counts(0, 0);
    rename(&path, "key 2");
    followed.expect(true, "key 2");
    followed.expect(false, "key 2");
    fs::write(&path, "key 3").unwrap();
    followed.expect(true, "key 3");
    // Neither time nor size tells.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "key 4").unwrap();
    fs::File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
    followed.expect(true, "key 4");
    followed.expect_counts(3, 0);
    assert_eq!(*in_use, "key 1", "a use that has begun");
}

#[test]
fn a_symbolic_link_that_is_switched_is_followed() {
    // The layout of a projected volume.
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    for (version, content) in [("..1", "key 1"), ("..2", "key 2")] {
        fs::create_dir(place(version)).unwrap();
        fs::write(place(version).join("secret"), content).unwrap();
    }
    symlink("..1", place("..data")).unwrap();
    symlink("..data/secret", place("secret")).unwrap();
    let followed = follow(place("secret"));
    symlink("..2", place("..data_tmp")).unwrap();
    fs::rename(place("..data_tmp"), place("..data")).unwrap();
    fs::remove_dir_all(place("..1")).unwrap();
    followed.expect(true, "key 2");
    followed.expect(false, "key 2");
}

#[test]
fn an_unusable_file_changes_nothing_and_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "key 1").unwrap();
    let followed = follow(path.clone());
    rename(&path, "hunter2");
    followed.expect_trouble("must begin with", "key 1");
    followed.expect_trouble("must begin with", "key 1");
    followed.expect_counts(0, 1);
    fs::write(&path, [b'k', b'e', b'y', 0xff]).unwrap();
    followed.expect_trouble("not a text", "key 1");
    fs::remove_file(&path).unwrap();
    followed.expect_trouble("cannot read", "key 1");
    followed.expect_trouble("No such file", "key 1");
    followed.expect_counts(0, 3);
    fs::write(&path, "key 1").unwrap();
    followed.expect(true, "key 1");
    fs::remove_file(&path).unwrap();
    followed.expect_trouble("cannot read", "key 1");
    fs::write(&path, "key 2").unwrap();
    followed.expect(true, "key 2");
    followed.expect_counts(2, 4);
}

#[test]
fn an_unusable_file_is_an_error_at_first() {
    let folder = tempfile::tempdir().unwrap();
    let files = SecretFiles::new(Metrics::default());
    let path = folder.path().join("secret");
    let follow = || {
        let parse = |text: &str| text.parse::<u8>().context("no number");
        files.follow_text(SecretKind::Clients, path.clone(), parse).map(|value| *value.get())
    };
    assert!(format!("{:#}", follow().unwrap_err()).contains("cannot read"));
    fs::write(&path, "hunter2").unwrap();
    let error = format!("{:#}", follow().unwrap_err());
    assert!(error.contains("no number") && !error.contains("hunter2"), "{error}");
    assert_eq!(files.refresh(), NONE, "it is not followed");
    fs::write(&path, "7").unwrap();
    assert_eq!(follow().unwrap(), 7);
}

#[test]
fn files_that_belong_together_are_applied_together() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["certificate", "key"].map(|name| folder.path().join(name));
    let write = |contents: [&str; 2]| {
        for (path, content) in paths.iter().zip(contents) {
            fs::write(path, content).unwrap();
        }
    };
    write(["1", "1"]);
    let files = SecretFiles::new(Metrics::default());
    let parse = |contents: &[Vec<u8>]| {
        anyhow::ensure!(contents[0] == contents[1], "the key of another certificate");
        Ok(contents.concat())
    };
    let value = files.follow(SecretKind::Tls, paths.to_vec(), parse).unwrap();
    write(["2", "1"]);
    assert_eq!(files.refresh().trouble, ["the key of another certificate"]);
    assert_eq!(*value.get(), b"11");
    write(["2", "2"]);
    assert_eq!(files.refresh().applied, [SecretKind::Tls]);
    assert_eq!(*value.get(), b"22");
    // The same bytes, divided in another way.
    write(["22", ""]);
    assert_eq!(files.refresh().trouble.len(), 1);
}

#[test]
fn a_refresh_does_not_wait_for_one_that_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "key 1").unwrap();
    let followed = follow(path.clone());
    rename(&path, "key 2");
    let hanging = followed.files.files.lock();
    let RefreshedSecrets { applied, trouble } = followed.files.refresh();
    assert!(applied.is_empty() && trouble.len() == 1, "{applied:?} {trouble:?}");
    drop(hanging);
    followed.expect(true, "key 2");
}

#[test]
fn uses_at_the_same_time_see_whole_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "key 0").unwrap();
    let followed = Arc::new(follow(path.clone()));
    let writer = std::thread::spawn(move || {
        for number in 1..=200 {
            rename(&path, &format!("key {number}"));
        }
    });
    while !writer.is_finished() {
        assert!(followed.files.refresh().trouble.is_empty());
        assert!(followed.value.get().starts_with("key "));
    }
    writer.join().unwrap();
    followed.files.refresh();
    assert_eq!(*followed.value.get(), "key 200");
}
