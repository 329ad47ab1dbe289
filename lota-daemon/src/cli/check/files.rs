//! Checks the files that the configuration names.

use std::{fmt::Display, fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::CheckReport;
use crate::{
    cluster::{ClusterKeys, NodeKey, PeersConfig},
    config::Config,
    gateway::TlsConfig,
    http::tls::CertificateFiles,
};

pub(super) fn check(report: &mut CheckReport<'_>, config: &Config) {
    for configured in config.all_gateways() {
        if let Some(backend) = configured.backend {
            let read = backend.credential().map(|credential| format!("access key {}", credential.access_key));
            secret(report, &configured.name.backend_section(), &backend.credential_file, read);
        }
        if let Some(TlsConfig { certificate, key }) = &configured.gateway.tls {
            let files = CertificateFiles { certificate: certificate.clone(), key: key.clone() };
            let read = files.read().map(|chain| format!("the key of {} certificates", chain.cert.len()));
            secret(report, &format!("{}.tls", configured.name.section()), key, read);
        }
        if let Some(re_sign) = &configured.gateway.re_sign {
            let read = re_sign.clients().map(|clients| format!("{} clients", clients.len()));
            secret(report, &format!("{}.re_sign", configured.name.section()), &re_sign.clients_file, read);
        }
    }
    if let Some(peers) = &config.peers {
        peer_keys(report, peers, &config.node.name);
        if let Some(tls) = &peers.tls {
            let read = tls.files().read().map(|_| "the key of this node's certificate".to_owned());
            secret(report, "peers.tls", &tls.key, read);
        }
    }
}

fn peer_keys(report: &mut CheckReport<'_>, peers: &PeersConfig, me: &str) {
    if let Some(file) = peers.keys.shared() {
        let read = ClusterKeys::read(file).map(|keys| match keys.count() {
            1 => "the cluster key".to_owned(),
            keys => format!("{keys} cluster keys, during a rotation"),
        });
        secret(report, "peers", file, read);
    }
    let Some(file) = peers.keys.node() else { return };
    if !file.exists() && file.parent().is_some_and(Path::is_dir) {
        return report.warn(
            "peers",
            format!("{}: there is no key of this node yet", file.display()),
            "the daemon makes it at its start; `lota node-key --create` makes it now, and prints the public key",
        );
    }
    let key = NodeKey::read(file);
    let listed = peers.nodes.iter().find(|node| node.name == me);
    if let (Ok(key), Some(listed)) = (&key, listed)
        && !listed.public_keys.contains(&key.public())
    {
        report.warn(
            "peers",
            format!("peers.nodes lacks the public key of this node: {}", key.public()),
            "add it to peers.nodes on all nodes: the others refuse messages of a node whose key they do not know",
        );
    }
    secret(
        report,
        "peers",
        file,
        key.map(|key| format!("the key of this node, with public key {}", key.public())),
    );
}

/// Checks that a file with secrets can be read, and only by its owner.
fn secret(report: &mut CheckReport<'_>, part: &str, path: &Path, read: Result<String, impl Display>) {
    let what = match read {
        Ok(what) => format!("{}: {what}", path.display()),
        Err(error) => return report.fail(part, error.to_string(), "the daemon will not start without it"),
    };
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777).unwrap_or_default();
    if mode & 0o007 == 0 {
        return report.ok(part, what);
    }
    report.warn(
        part,
        format!("{what}; every user of this machine can read it (mode {mode:04o})"),
        format!("chmod 600 {}; for a Secret's volume in Kubernetes, `defaultMode: 0400`", path.display()),
    );
}
