//! The gateway, and the backend behind it.

use std::time::Duration;

use hyper::{
    Method, Request, StatusCode,
    header::{self, HeaderValue},
};

use super::{
    Report,
    server::{Answer, ask, is_placeholder, is_reached, printable},
};
use crate::{
    config::{Config, Credential, Origin, Secret},
    gateway::MADE_UP,
    http::upstream::Upstream,
    s3::{ObjectName, sign::Signer},
};

/// Clocks that are further apart are worth a word.
const SLOPPY: Duration = Duration::from_secs(60);
/// S3 refuses signatures of clocks that are so far apart.
const REFUSED: Duration = Duration::from_secs(15 * 60);

pub(super) async fn check(report: &mut Report<'_>, config: &Config) {
    let (gateway, origin) = (&config.gateway, &config.gateway.endpoint);
    for path in gateway.direct_allow.iter().filter(|path| is_placeholder(path)) {
        let todo = "set gateway.direct_allow to where your gateway's direct paths point";
        report.fail("gateway", format!("{path} is a placeholder"), todo);
    }
    if !is_reached(report, "gateway", "gateway.endpoint", origin).await {
        return;
    }
    let Some(upstream) = upstream(report, origin) else { return };
    // Clients address the zone, and so does what travels to the gateway, unless it is signed anew.
    let host = match gateway.resign {
        Some(_) => origin.authority.as_str(),
        None => config.endpoint.zone.as_str(),
    };
    let request = Request::builder().uri(format!("{origin}/")).header(header::HOST, host).body(());
    let Ok(request) = request else { return };
    let answer = match ask(&upstream, request).await {
        Ok(answer) => answer,
        Err(error) => {
            let todo = match origin.tls {
                true => "is it a TLS server, with a certificate that this system trusts, for that name?",
                false => "is it an HTTP server? For TLS, write `https://`",
            };
            return report.fail("gateway", format!("{origin} does not answer: {error}"), todo);
        }
    };
    speaks_s3(report, config, &answer);
    clock(report, answer.skew);
    trial(report, &upstream, origin).await;
}

/// Is it S3 that answers an anonymous `GET /`, and does it know the name that clients use?
fn speaks_s3(report: &mut Report<'_>, config: &Config, answer: &Answer) {
    let (origin, zone) = (&config.gateway.endpoint, config.endpoint.zone.as_str());
    let server = answer.headers.get(header::SERVER).and_then(|server| server.to_str().ok());
    let server = server.map(|server| format!(", {}", printable(server))).unwrap_or_default();
    let said = answer.said();
    let resigns = config.gateway.resign.is_some();
    match (answer.status, answer.tag("Code")) {
        (_, Some("NoSuchBucket" | "InvalidBucketName")) if !resigns => report.fail(
            "gateway",
            format!("{origin} takes `{zone}` for a bucket ({said}{server})"),
            format!("make {zone} a domain name of the gateway's (see docs/s3.md), or use [gateway.resign]"),
        ),
        (StatusCode::MOVED_PERMANENTLY | StatusCode::TEMPORARY_REDIRECT, _)
        | (_, Some("PermanentRedirect" | "TemporaryRedirect")) => report.warn(
            "gateway",
            format!("{origin} sends requests for `{zone}` elsewhere ({said}{server})"),
            "redirects are relayed, never followed: name the right endpoint, or use [gateway.resign]",
        ),
        (status, _) if status.is_server_error() => {
            let todo = "it has troubles of its own: see its log";
            report.fail("gateway", format!("{origin} answers {said}{server}"), todo);
        }
        (_, Some(_)) => report.ok("gateway", format!("{origin} answers like S3: {said}{server}")),
        (StatusCode::OK, None) if answer.body.contains("<ListAllMyBucketsResult") => {
            report.ok("gateway", format!("{origin} answers like S3, also to who does not sign{server}"));
        }
        (_, None) => report.warn(
            "gateway",
            format!("{origin} does not answer like S3: {said}{server}, without an error in XML"),
            "is it the S3 endpoint, rather than a web server or a console?",
        ),
    }
}

fn clock(report: &mut Report<'_>, skew: Option<Duration>) {
    let todo = "run a time service (chrony, say) on the node: signatures and peers' requests are good for a while only";
    match skew {
        None => report.warn("clock", "the gateway does not say what time it is", "compare clocks by hand"),
        Some(skew) => {
            let what = format!("this node's clock and the gateway's are {} s apart", skew.as_secs());
            match skew {
                _ if skew >= REFUSED => report.fail("clock", what, todo),
                _ if skew >= SLOPPY => report.warn("clock", what, todo),
                _ => report.ok("clock", what),
            }
        }
    }
}

/// The half of the trial that needs no client: who signs with what nobody has must be refused.
async fn trial(report: &mut Report<'_>, upstream: &Upstream, origin: &Origin) {
    let nobody = Credential {
        access_key: "LOTACHECKNOBODY00000".to_owned(),
        secret_key: Secret::from(hex::encode(rand::random::<[u8; 16]>())),
        session_token: None,
    };
    let Some(name) = ObjectName::from_parts("lota-check", "no-such-object", None) else { return };
    let Ok(mut request) = Signer::new(&nobody, "us-east-1").object(Method::GET, origin, &name) else {
        return;
    };
    request.headers_mut().insert(header::IF_NONE_MATCH, HeaderValue::from_static(MADE_UP));
    let todo = "requests would be proxied, and nothing served from the cache: is there a cache in front of it? Name the \
                gateway itself";
    match ask(upstream, request).await {
        Ok(answer) if answer.status.is_success() || answer.status == StatusCode::NOT_MODIFIED => {
            let what = format!("{origin} answers {} to a credential that nobody has", answer.said());
            report.fail("trial", what, todo);
        }
        Ok(answer) if matches!(answer.status.as_u16(), 400 | 401 | 403) => report.ok(
            "trial",
            format!(
                "{origin} refuses a credential that nobody has: {}. The rest takes a client's request; see `lota gateway \
                 status`",
                answer.said()
            ),
        ),
        Ok(answer) => {
            let what = format!("{origin} answers {} to a credential that nobody has", answer.said());
            report.warn("trial", what, "that proves nothing; it is tried again with the first hit");
        }
        Err(error) => report.warn("trial", error, "it is tried again with the first hit"),
    }
}

/// The backend: is LOTA's own credential known there?
pub(super) async fn check_backend(report: &mut Report<'_>, config: &Config) {
    let Some(backend) = &config.backend else {
        let todo =
            "with [backend], ranges that clients sign are filled, too, and by several requests at once";
        let has_another = config.gateway.resign.is_some() || !config.gateway.direct_allow.is_empty();
        if !has_another {
            report.warn("backend", "no [backend]: fills are made of clients' own requests", todo);
        }
        return;
    };
    // That it cannot be read was said before.
    let Ok(credential) = backend.credential() else { return };
    let signer = Signer::new(&credential, &backend.region);
    for endpoint in &backend.endpoints {
        if !is_reached(report, "backend", "backend.endpoints", endpoint).await {
            continue;
        }
        let Some(upstream) = upstream(report, endpoint) else { continue };
        let Ok(request) = signer.request(Method::GET, endpoint, "/", &[]) else { continue };
        match ask(&upstream, request).await {
            Ok(answer) => is_known(report, endpoint, &answer),
            Err(error) => {
                let what = format!("{endpoint} does not answer: {error}");
                report.fail("backend", what, "is it the S3 endpoint of the storage?");
            }
        }
    }
}

/// What the answer to a signed `GET /` says of the credential.
fn is_known(report: &mut Report<'_>, endpoint: &Origin, answer: &Answer) {
    let said = answer.said();
    let refused = format!("{endpoint} refuses LOTA's own credential: {said}");
    match (answer.status, answer.tag("Code").unwrap_or_default()) {
        (status, _) if status.is_success() => {
            report.ok("backend", format!("{endpoint} knows LOTA's own credential"));
        }
        (StatusCode::FORBIDDEN, "AccessDenied") => report.ok(
            "backend",
            format!("{endpoint} knows LOTA's own credential, which may not list buckets and need not"),
        ),
        (_, "InvalidAccessKeyId") => {
            report.fail("backend", refused, "is access_key of backend.credential_file one of this server's?");
        }
        (_, "SignatureDoesNotMatch") => {
            report.fail(
                "backend",
                refused,
                "is secret_key of backend.credential_file the one of its access_key?",
            );
        }
        (_, "RequestTimeTooSkewed") => report.fail("backend", refused, "set this node's clock"),
        (_, "AuthorizationHeaderMalformed" | "InvalidRegion") => {
            report.fail("backend", refused, "set backend.region to this server's");
        }
        (_, "ExpiredToken" | "InvalidToken") => {
            report.fail(
                "backend",
                refused,
                "its session_token is not good: use a credential that does not expire",
            );
        }
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
            report.fail("backend", refused, "ask the server's log why");
        }
        _ => report.warn(
            "backend",
            format!("{endpoint} answers {said} to a list of buckets"),
            "whether the credential is known shows with the first fill: see lota_fills_total",
        ),
    }
}

fn upstream(report: &mut Report<'_>, origin: &Origin) -> Option<Upstream> {
    match Upstream::new(origin.tls) {
        Ok(upstream) => Some(upstream.impatient()),
        Err(error) => {
            let todo = "install the package `ca-certificates`, or set SSL_CERT_FILE";
            report.fail("tls", format!("the system's root certificates: {error}"), todo);
            None
        }
    }
}
