//! The shape of a public cloud: HTTPS at a fixed name that clients sign, and no credential in LOTA.

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{Credential, GATEWAY, Mode, VIP},
    tour::{MIB, Tour, wait_until},
};
use serde_json::json;

use crate::{intercepted::cluster_dns, tls::TlsProxy};

/// A name that only its owner could answer for.
const NAME: &str = "s3.us-east-1.amazonaws.com";

/// Starts a node's daemon with its own resolver.
const WITH_RESOLVER: &str = "mount --bind \"$RESOLVER\" /etc/resolv.conf && exec \"$0\" \"$@\"";

/// Verifies that pods which change nothing get hits from a gateway whose name LOTA cannot change.
pub(crate) fn hits(tour: &mut Tour) -> Result<()> {
    let proxy = TlsProxy::start(tour, &[NAME.to_owned()], 443)?;
    let dns = cluster_dns(tour)?;
    let (certificate, key) = proxy.files();
    let keys = format!(
        "[gateway]\nnames = [\"{NAME}\"]\ntls = {{ certificate = \"{}\", key = \"{}\" }}\n",
        certificate.display(),
        key.display()
    );
    tour.nodes.iter_mut().for_each(|node| node.edit("[gateway]\n", &keys));
    let ran = restart(tour, &proxy).and_then(|()| reads(tour, &proxy));
    drop(dns);
    for (_, pod) in tour.one_pod_per_node() {
        pod.set_resolver(VIP, "")?;
    }
    for node in &mut tour.nodes {
        node.forget_edits();
        node.set_environment(Vec::new());
        node.set_wrapper(Vec::new());
    }
    tour.restart(Mode::OwnCredential)?;
    ran
}

fn restart(tour: &mut Tour, proxy: &TlsProxy) -> Result<()> {
    let resolver = tour.lab.folder().join("resolv.conf");
    std::fs::write(&resolver, format!("nameserver {GATEWAY}\n"))?;
    tour.restart_each(|node| {
        node.set_environment(vec![
            ("SSL_CERT_FILE", proxy.root().to_owned()),
            ("RESOLVER", resolver.clone()),
        ]);
        node.set_wrapper(vec!["unshare", "--mount", "sh", "-c", WITH_RESOLVER]);
        node.configure_gateway(Mode::ClientOnly, &format!("https://{NAME}"))
    })
}

fn reads(tour: &Tour, proxy: &TlsProxy) -> Result<()> {
    let options = json!({ "endpoint": format!("https://{NAME}"), "style": "path", "ca": proxy.root() });
    let key = "public-cloud";
    let put = tour.client.put(&tour.pod(1, 1), key, 150, 2 * MIB)?;
    for (node, pod) in tour.one_pod_per_node() {
        wait_until("a hit", || {
            let got = tour.client.get_with(&pod, key, options.clone())?;
            ensure!(got.status == 200 && got.sha256 == put.sha256, "n{node}: {} {}", got.status, got.code);
            Ok(got.cache() == "hit")
        })
        .with_context(|| format!("from n{node}"))?;
    }
    let stranger = tour.client.with(Credential::fixed("LOTALABADMIN00000001", "another secret"));
    let wrong = stranger.get_with(&tour.pod(1, 1), key, options)?;
    ensure!(wrong.status == 403, "with a wrong secret: {}", wrong.status);
    Ok(())
}
