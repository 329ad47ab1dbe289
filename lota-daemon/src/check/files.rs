//! Files that the configuration names.

use std::{fmt::Display, fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::Report;
use crate::config::Config;

pub(super) fn check(report: &mut Report<'_>, config: &Config) {
    if let Some(backend) = &config.backend {
        let read = backend.credential().map(|credential| format!("access key {}", credential.access_key));
        secret(report, "backend", &backend.credential_file, read);
    }
    if let Some(resign) = &config.gateway.resign {
        let read = resign.clients().map(|clients| format!("{} clients", clients.len()));
        secret(report, "resign", &resign.clients_file, read);
    }
    if let Some(peers) = &config.peers {
        secret(
            report,
            "peers",
            &peers.secret_file,
            peers.secret().map(|_| "the cluster's secret".to_owned()),
        );
    }
}

/// A file with secrets: can it be read, and by whom else?
fn secret(report: &mut Report<'_>, about: &'static str, path: &Path, read: Result<String, impl Display>) {
    let what = match read {
        Ok(what) => format!("{}: {what}", path.display()),
        Err(error) => return report.fail(about, error.to_string(), "the daemon will not start without it"),
    };
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777).unwrap_or_default();
    if mode & 0o007 == 0 {
        return report.ok(about, what);
    }
    report.warn(
        about,
        format!("{what}; every user of this machine can get at it (mode {mode:04o})"),
        format!("chmod 600 {}; for a Secret's volume in Kubernetes, `defaultMode: 0400`", path.display()),
    );
}
