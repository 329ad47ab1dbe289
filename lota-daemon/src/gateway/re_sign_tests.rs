use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{PayloadChecksumKind, PercentEncodingMode, SignableRequest, SigningSettings, sign},
    sign::v4,
};

use super::*;
use crate::http::empty;
use lota_s3::{Endpoint, GatewayId, Zone};

const CLIENTS: &str = r#"
[[client]]
access_key = "POD"
secret_key = "pod-secret"

[client.gateway]
access_key = "CLOUD"
secret_key = "cloud-secret"
session_token = "cloud-token"

[[client]]
access_key = "SESSION"
secret_key = "session-secret"
session_token = "session-token"
"#;

fn clients(text: &str) -> HashMap<String, ClientCredential> {
    let style = AddressingStyle::Path;
    ReSignConfig { clients_file: "clients.toml".into(), region: String::new(), style }
        .parse_clients(text)
        .unwrap()
}

fn re_sign(style: AddressingStyle) -> ReSign {
    let config = ReSignConfig { clients_file: "clients.toml".into(), region: "eu-west-1".into(), style };
    let clients = Reloadable::new(clients(CLIENTS));
    let gateway = Origin::parse("https://s3.example.com").unwrap();
    let endpoint = Endpoint::of_zone(Zone::parse("cwlota.com").unwrap(), GatewayId::from(&gateway));
    let vip = Endpoint::of_address([169, 254, 77, 80].into(), GatewayId::from(&gateway));
    let endpoints = [endpoint, vip].into_iter().collect();
    ReSign::new(&config, clients, &gateway, &endpoints, 1 << 20)
}

fn sent(host: &str, target: &str, access_key: &str, secret: &str, token: Option<&str>) -> RequestHead {
    let mut request =
        Request::builder().uri(format!("http://{host}{target}")).header("host", host).body(()).unwrap();
    if !access_key.is_empty() {
        let credential = lota_s3::Credential {
            access_key: access_key.into(),
            secret_key: secret.to_owned().into(),
            session_token: token.map(|token| token.to_owned().into()),
        };
        Signer::new(&credential, "us-east-1").sign(&mut request, SignableBody::Bytes(b""), false).unwrap();
    }
    RequestHead::of(request.into_parts().0).unwrap()
}

#[test]
fn the_request_is_the_same_at_another_address() {
    for (style, host, target, uri) in [
        (
            AddressingStyle::Path,
            "cwlota.com",
            "/b/a%20b/../c?versionId=1",
            "https://s3.example.com/b/a%20b/../c?versionId=1",
        ),
        (AddressingStyle::Path, "b.cwlota.com:80", "/k", "https://s3.example.com/b/k"),
        (AddressingStyle::Path, "b.cwlota.com", "/b", "https://s3.example.com/b/b"),
        (AddressingStyle::Path, "b.cwlota.com", "/", "https://s3.example.com/b/"),
        (AddressingStyle::Path, "cwlota.com", "/b", "https://s3.example.com/b"),
        (AddressingStyle::Path, "cwlota.com", "/b/", "https://s3.example.com/b/"),
        (AddressingStyle::Path, "cwlota.com", "/", "https://s3.example.com/"),
        (AddressingStyle::Path, "169.254.77.80", "/b/k", "https://s3.example.com/b/k"),
        (AddressingStyle::VirtualHost, "cwlota.com", "/b/k?acl", "https://b.s3.example.com/k?acl"),
        (AddressingStyle::VirtualHost, "b.cwlota.com", "/k", "https://b.s3.example.com/k"),
        (
            AddressingStyle::VirtualHost,
            "b.cwlota.com",
            "/?list-type=2",
            "https://b.s3.example.com/?list-type=2",
        ),
        (AddressingStyle::VirtualHost, "cwlota.com", "/b", "https://b.s3.example.com/"),
        (AddressingStyle::VirtualHost, "b.cwlota.com", "/b", "https://b.s3.example.com/b"),
        (AddressingStyle::VirtualHost, "cwlota.com", "/a.b/k", "https://s3.example.com/a.b/k"),
        (AddressingStyle::VirtualHost, "cwlota.com", "/Big/k", "https://s3.example.com/Big/k"),
        (AddressingStyle::VirtualHost, "cwlota.com", "//k", "https://s3.example.com//k"),
        (AddressingStyle::VirtualHost, "cwlota.com", "/", "https://s3.example.com/"),
    ] {
        let re_sign = re_sign(style);
        let request = re_sign.request(&sent(host, target, "POD", "pod-secret", None), empty()).unwrap();
        assert_eq!(request.uri(), uri, "{host}{target}");
        assert_eq!(request.headers()["host"], request.uri().authority().unwrap().as_str());
        let authorization = request.headers()["authorization"].to_str().unwrap();
        assert!(authorization.contains("Credential=CLOUD/") && authorization.contains("/eu-west-1/s3/"));
        assert_eq!(request.headers()["x-amz-security-token"], "cloud-token");
        // The gateway receives exactly the signed request.
        let head = RequestHead::of(request.into_parts().0).unwrap();
        let signature = RequestSignature::of(&head.target, &head.headers).unwrap().unwrap();
        let secret = "cloud-secret".to_owned().into();
        assert!(
            signature.verify(&secret, (&head.method, &head.target, &head.headers), SystemTime::now()).is_ok()
        );
        // A request without a signature stays without one.
        let request = re_sign.request(&sent(host, target, "", "", None), empty()).unwrap();
        assert_eq!(request.uri(), uri);
        assert!(!request.headers().contains_key("authorization"));
    }
}

#[test]
fn a_client_that_was_removed_is_refused_from_the_next_request_on() {
    let re_sign = re_sign(AddressingStyle::Path);
    let request = |access_key, secret| {
        let sent = sent("cwlota.com", "/b/k", access_key, secret, None);
        re_sign.request(&sent, empty()).map(drop).map_err(|error| error.code)
    };
    assert_eq!(request("POD", "pod-secret"), Ok(()));
    assert_eq!(re_sign.access_key_at_gateway("POD"), Some("CLOUD".to_owned()));
    re_sign.clients.set(clients("[[client]]\naccess_key = \"LATER\"\nsecret_key = \"later\""));
    assert_eq!(request("POD", "pod-secret").unwrap_err(), "InvalidAccessKeyId");
    assert_eq!(request("LATER", "later"), Ok(()));
    assert_eq!(re_sign.access_key_at_gateway("POD"), None);
    assert_eq!(re_sign.access_key_at_gateway("LATER"), Some("LATER".to_owned()));
    re_sign.clients.set(clients("[[client]]\naccess_key = \"LATER\"\nsecret_key = \"another\""));
    assert_eq!(request("LATER", "later").unwrap_err(), "SignatureDoesNotMatch");
}

#[test]
fn a_presigned_request_stays_presigned() {
    let mut request = Request::builder()
        .method("PUT")
        .uri("http://cwlota.com/b/k?x-amz-meta-a=two%20words&x-amz-acl=private")
        .header("host", "cwlota.com")
        .body(())
        .unwrap();
    let credential = lota_s3::Credential {
        access_key: "POD".into(),
        secret_key: "pod-secret".to_owned().into(),
        session_token: None,
    };
    let signer = Signer::new(&credential, "us-east-1");
    signer.sign(&mut request, SignableBody::UnsignedPayload, true).unwrap();
    let head = RequestHead::of(request.into_parts().0).unwrap();
    let request = re_sign(AddressingStyle::Path).request(&head, empty()).unwrap();
    // Some parameters are valid only in a presigned query.
    let query = request.uri().query().unwrap();
    assert!(query.contains("x-amz-meta-a=two%20words&x-amz-acl=private&"), "{query}");
    assert!(
        query.contains("X-Amz-Credential=CLOUD%2F") && query.contains("X-Amz-Security-Token=cloud-token")
    );
    assert!(!request.headers().contains_key("authorization"));
    let sent = RequestHead::of(request.into_parts().0).unwrap();
    let signature = RequestSignature::of(&sent.target, &sent.headers).unwrap().unwrap();
    let secret = "cloud-secret".to_owned().into();
    signature.verify(&secret, (&sent.method, &sent.target, &sent.headers), SystemTime::now()).unwrap();
}

/// Some SDKs sign `Transfer-Encoding`, which is removed from the head before verification.
#[test]
fn a_signed_transfer_encoding_is_verified() {
    let mut settings = SigningSettings::default();
    settings.excluded_headers = Some(Vec::new());
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let identity = Credentials::new("POD", "pod-secret", None, None, "test").into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("us-east-1")
        .name("s3")
        .time(SystemTime::now())
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let (uri, headers) =
        ("http://cwlota.com/b/k", [("host", "cwlota.com"), ("transfer-encoding", "chunked")]);
    let signable =
        SignableRequest::new("PUT", uri, headers.into_iter(), SignableBody::UnsignedPayload).unwrap();
    let (instructions, _) = sign(signable, &params).unwrap().into_parts();
    let request = Request::builder().method("PUT").uri(uri).header(headers[0].0, headers[0].1);
    let mut request = request.header(headers[1].0, headers[1].1).body(()).unwrap();
    instructions.apply_to_request_http1x(&mut request);
    let authorization = request.headers()["authorization"].to_str().unwrap();
    assert!(authorization.contains("transfer-encoding"), "{authorization}");
    let head = RequestHead::of(request.into_parts().0).unwrap();
    assert!(head.chunked && !head.headers.contains_key("transfer-encoding"));
    re_sign(AddressingStyle::Path).request(&head, empty()).unwrap();
}

#[test]
fn an_anonymous_request_is_forwarded_unchanged() {
    let mut head = sent("cwlota.com", "/b/k", "", "", None);
    head.headers
        .insert("x-amz-content-sha256", HeaderValue::from_static("STREAMING-UNSIGNED-PAYLOAD-TRAILER"));
    let request = re_sign(AddressingStyle::Path).request(&head, empty()).unwrap();
    assert_eq!(request.headers()["x-amz-content-sha256"], "STREAMING-UNSIGNED-PAYLOAD-TRAILER");
}

#[test]
fn nothing_is_signed_without_verification() {
    let re_sign = re_sign(AddressingStyle::Path);
    for (access_key, secret, token, code) in [
        ("POD", "wrong", None, "SignatureDoesNotMatch"),
        ("NOBODY", "pod-secret", None, "InvalidAccessKeyId"),
        ("CLOUD", "cloud-secret", Some("cloud-token"), "InvalidAccessKeyId"),
        ("POD", "pod-secret", Some("cloud-token"), "InvalidToken"),
        ("SESSION", "session-secret", None, "InvalidToken"),
        ("SESSION", "session-secret", Some("other"), "InvalidToken"),
        ("SESSION", "session-secret", Some("session-token"), ""),
    ] {
        let answer = re_sign.request(&sent("cwlota.com", "/b/k", access_key, secret, token), empty());
        assert_eq!(answer.map_or_else(|error| error.code, |_| ""), code, "{access_key} {secret} {token:?}");
    }
    for host in ["a%2f..%2fb.cwlota.com", "x@y.cwlota.com", "..cwlota.com"] {
        let mut head = sent("cwlota.com", "/k", "", "", None);
        head.host = host.into();
        assert_eq!(re_sign.request(&head, empty()).unwrap_err().code, "AccessDenied", "{host}");
    }
    assert!(!format!("{re_sign:?}").contains("secret"));
}
