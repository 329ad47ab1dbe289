use std::net::Ipv4Addr;

use lota_scripted::{Authority, CertificatePlan, DAY, IssuedCertificate};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

const HERE: &str = "127.0.0.1";

fn authority() -> Authority {
    Authority::new("the nodes' CA").unwrap()
}

/// Parses a certificate with these authorities and revocation lists, where servers have `name`.
fn tls(issued: &IssuedCertificate, ca: &str, crl: Option<&str>, name: Option<&str>) -> MutualTls {
    parse(issued, ca, crl, name).unwrap()
}

fn parse(
    issued: &IssuedCertificate,
    ca: &str,
    crl: Option<&str>,
    name: Option<&str>,
) -> Result<MutualTls, String> {
    let files = MutualTlsFiles {
        own: CertificateFiles { certificate: "tls.crt".into(), key: "tls.key".into() },
        ca: "ca.crt".into(),
        crl: crl.map(|_| "ca.crl".into()),
        server_name: name.map(|name| ServerName::try_from(name.to_owned()).unwrap()),
    };
    let contents = [&issued.certificate, &issued.key, ca].into_iter().chain(crl);
    files.parse(&contents.map(|content| content.as_bytes().to_vec()).collect::<Vec<_>>())
}

/// Lets a client send a byte to a server. Returns both results.
async fn meet(client: &MutualTls, server: &MutualTls) -> (io::Result<u8>, io::Result<u8>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut tls = match server.accept(stream).await {
            Ok(tls) => tls.into_inner(),
            Err(failed) => return Err(failed.told().await),
        };
        let byte = tls.read_u8().await?;
        tls.write_u8(byte + 1).await?;
        tls.shutdown().await?;
        Ok(byte)
    };
    let asking = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut tls = client.connect(address.ip(), stream).await?;
        tls.write_u8(7).await?;
        tls.read_u8().await
    };
    tokio::join!(asking, serving)
}

/// Verifies that the server refuses the client for this reason, and that the client is told.
async fn expect_refused(client: &MutualTls, server: &MutualTls, why: &str, told: &str) {
    let (asked, served) = meet(client, server).await;
    let refused = TlsRefusal::of(&served.unwrap_err()).unwrap();
    assert!(refused.is_here() && refused.to_string().contains(why), "{refused}");
    let refused = TlsRefusal::of(&asked.unwrap_err()).unwrap();
    assert!(!refused.is_here() && refused.to_string().contains(told), "{refused}");
}

#[tokio::test]
async fn nodes_of_one_authority_trust_each_other() {
    let ca = authority();
    let by_address = ca.issue(&[HERE], CertificatePlan::default()).unwrap();
    let by_address = tls(&by_address, &ca.pem(), None, None);
    let by_name = ca.issue(&["lota-peers"], CertificatePlan { serial: 2, ..Default::default() }).unwrap();
    let by_name = tls(&by_name, &ca.pem(), Some(&ca.revoke(&[1]).unwrap()), Some("lota-peers"));
    for both in [&by_address, &by_name] {
        let (asked, served) = meet(both, both).await;
        assert_eq!((asked.unwrap(), served.unwrap()), (8, 7));
        assert_eq!(both.own_problem(HERE.parse().unwrap()), None);
    }
    // Two authorities during a change from one to the other, of which one has a list.
    let next = Authority::new("the next CA").unwrap();
    let bundle = ca.pem() + &next.pem();
    let new = next.issue(&[HERE], CertificatePlan::default()).unwrap();
    let old = ca.issue(&[HERE], CertificatePlan { serial: 3, ..Default::default() }).unwrap();
    let (new, old) =
        (tls(&new, &bundle, None, None), tls(&old, &bundle, Some(&next.revoke(&[9]).unwrap()), None));
    for (client, server) in [(&new, &old), (&old, &new)] {
        assert_eq!(meet(client, server).await.0.unwrap(), 8);
    }
}

#[tokio::test]
async fn certificates_that_are_not_valid_are_refused_by_both_sides() {
    let (ca, other) = (authority(), authority());
    let good = ca.issue(&[HERE], CertificatePlan::default()).unwrap();
    let expired = CertificatePlan { valid: -9 * DAY..-DAY, ..Default::default() };
    let future = CertificatePlan { valid: DAY..9 * DAY, ..Default::default() };
    let revoked = CertificatePlan { serial: 66, ..Default::default() };
    let list = ca.revoke(&[66]).unwrap();
    for (bad, why, told) in [
        (
            other.issue(&[HERE], CertificatePlan::default()),
            "issuer that is not in peers.tls.ca",
            "does not contain its issuer",
        ),
        (ca.issue(&[HERE], expired), "is expired since", "expired or not valid yet"),
        (ca.issue(&[HERE], future), "is not valid before", "expired or not valid yet"),
        (ca.issue(&[HERE], revoked), "is revoked", "it is revoked"),
    ] {
        let good = tls(&good, &ca.pem(), Some(&list), None);
        let bad = tls(&bad.unwrap(), &ca.pem(), Some(&list), None);
        expect_refused(&bad, &good, why, told).await;
        let (asked, served) = meet(&good, &bad).await;
        let refused = TlsRefusal::of(&asked.unwrap_err()).unwrap();
        assert!(refused.is_here() && refused.to_string().contains(why), "{refused}");
        assert!(served.is_err());
        assert!(bad.own_problem(HERE.parse().unwrap()).unwrap().to_string().contains(why));
    }
}

#[tokio::test]
async fn a_server_needs_the_name_and_a_client_the_usage() {
    let ca = authority();
    let issue = |names: &[&str], plan| ca.issue(names, plan).unwrap();
    let good = tls(&issue(&[HERE], CertificatePlan::default()), &ca.pem(), None, None);
    for (names, expected) in [(&["10.0.0.1"][..], None), (&[HERE], Some("lota-peers"))] {
        let named = tls(&issue(names, CertificatePlan::default()), &ca.pem(), None, None);
        let asking = tls(&issue(&[HERE], CertificatePlan::default()), &ca.pem(), None, expected);
        let (asked, _) = meet(&asking, &named).await;
        let refused = TlsRefusal::of(&asked.unwrap_err()).unwrap().to_string();
        assert!(refused.contains(&format!("not valid for `{}`", expected.unwrap_or(HERE))), "{refused}");
    }
    let server_only = issue(&[HERE], CertificatePlan { is_client: false, ..Default::default() });
    let server_only = tls(&server_only, &ca.pem(), None, None);
    expect_refused(&server_only, &good, "usages", "usages").await;
    let without = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_webpki_verifier(good.of_servers.clone())
        .with_no_client_auth();
    let anonymous = MutualTls { client: Arc::new(without), ..server_only };
    expect_refused(&anonymous, &good, "it has no certificate", "received none").await;
}

#[test]
fn the_validity_is_known() {
    let (ca, now) = (authority(), SystemTime::now());
    let valid = -2 * DAY..7 * DAY;
    let issued = ca.issue(&[HERE], CertificatePlan { valid: valid.clone(), ..Default::default() }).unwrap();
    let (from, until) = tls(&issued, &ca.pem(), None, None).validity().unwrap();
    for (found, days) in [(now.duration_since(from), 2), (until.duration_since(now), 7)] {
        let distance = found.unwrap().as_secs().abs_diff(days * DAY.unsigned_abs());
        assert!(distance < 60, "{distance} s off {days} days");
    }
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let ca = authority();
    let (one, other) = (
        ca.issue(&[HERE], CertificatePlan::default()).unwrap(),
        ca.issue(&[HERE], CertificatePlan::default()).unwrap(),
    );
    let mixed = IssuedCertificate { key: other.key, ..one.clone() };
    let empty = IssuedCertificate { certificate: String::new(), ..one.clone() };
    let (pem, list) = (ca.pem(), ca.revoke(&[1]).unwrap());
    let appended = format!("{list}{}", ca.revoke(&[1, 2]).unwrap());
    let of_two = format!("{list}{}", Authority::new("another CA").unwrap().revoke(&[1]).unwrap());
    assert!(parse(&one, &pem, Some(&of_two), None).is_ok(), "a list of each issuer");
    let no_list = pem.replace("CERTIFICATE", "X509 CRL");
    for (issued, ca, crl, words) in [
        (&mixed, pem.as_str(), None, "tls.key: "),
        (&empty, &pem, None, "tls.crt: no certificate in PEM format"),
        (&one, "", None, "ca.crt: no certificate in PEM format"),
        (&one, &list, None, "ca.crt: no certificate in PEM format"),
        (&one, &pem, Some(""), "ca.crl: no revocation list in PEM format"),
        (&one, &pem, Some(no_list.as_str()), "ca.crl: "),
        (&one, &pem, Some(&appended), "ca.crl: two revocation lists of one issuer"),
    ] {
        let error = parse(issued, ca, crl, None).map(drop).unwrap_err();
        assert!(error.starts_with(words), "{error}");
    }
}
