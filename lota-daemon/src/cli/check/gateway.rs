//! Checks the gateway and the backend.

use std::{net::SocketAddrV4, time::Duration};

use hyper::{
    Method, Request, StatusCode,
    header::{self, HeaderValue},
};
use lota_cache::AfterWrite;
use lota_s3::{Credential, ObjectName, Origin, Secret, signing::Signer, verification::MAX_CLOCK_SKEW};

use super::{
    CheckReport,
    server::{ServerAnswer, ask, is_placeholder, is_reached, printable},
};
use crate::{
    config::{Config, ConfiguredGateway},
    gateway::{GatewayName, MADE_UP},
    http::upstream::Upstream,
    reconciler::HTTP_PORT,
};

/// Clock difference above which a warning is printed.
const WARN_CLOCK_SKEW: Duration = Duration::from_secs(60);

pub(super) async fn check(report: &mut CheckReport<'_>, config: &Config) {
    for configured in config.all_gateways() {
        check_gateway(report, config, &configured).await;
        check_backend(report, config, &configured).await;
    }
}

async fn check_gateway(report: &mut CheckReport<'_>, config: &Config, configured: &ConfiguredGateway<'_>) {
    let (section, gateway) = (configured.name.section(), configured.gateway);
    let origin = &gateway.endpoint;
    for path in gateway.direct_allow.iter().filter(|path| is_placeholder(path)) {
        let fix = format!("set {section}.direct_allow to the targets of your gateway's direct paths");
        report.fail(&section, format!("{path} is a placeholder"), fix);
    }
    if !is_reached(report, &section, &format!("{section}.endpoint"), origin).await {
        return;
    }
    let Some(upstream) = upstream(report, origin) else { return };
    for host in hosts(config, configured) {
        let request = Request::builder().uri(format!("{origin}/")).header(header::HOST, &host).body(());
        let Ok(request) = request else { continue };
        match ask(&upstream, request).await {
            Ok(answer) => {
                speaks_s3(report, configured, &host, &answer);
                clock(report, answer.skew);
            }
            Err(error) => {
                let fix = match origin.tls {
                    true => "check that it is a TLS server with a trusted certificate for that name",
                    false => "check that it is an HTTP server; for TLS, use `https://`",
                };
                return report.fail(&section, format!("{origin} does not answer: {error}"), fix);
            }
        }
    }
    verification(report, &upstream, origin).await;
}

/// Returns the hosts that requests name when they reach the gateway: without re-signing, the clients' own.
fn hosts(config: &Config, configured: &ConfiguredGateway<'_>) -> Vec<String> {
    let gateway = configured.gateway;
    if gateway.re_sign.is_some() {
        return vec![gateway.endpoint.authority.to_string()];
    }
    let zone = (configured.name == GatewayName::default()).then_some(&config.endpoint.zone);
    let names = zone.into_iter().chain(&gateway.names).map(|name| name.as_str().to_owned());
    let at_address = |target: SocketAddrV4| match target.port() {
        HTTP_PORT => target.ip().to_string(),
        _ => target.to_string(),
    };
    names.chain(gateway.targets().map(at_address)).collect()
}

/// Checks that an anonymous `GET /` gets an S3 answer, and that the gateway knows the clients' host name.
fn speaks_s3(
    report: &mut CheckReport<'_>,
    configured: &ConfiguredGateway<'_>,
    host: &str,
    answer: &ServerAnswer,
) {
    let (section, origin) = (configured.name.section(), &configured.gateway.endpoint);
    let server = answer.headers.get(header::SERVER).and_then(|server| server.to_str().ok());
    let server = server.map(|server| format!(", {}", printable(server))).unwrap_or_default();
    let summary = answer.summary();
    let resigns = configured.gateway.re_sign.is_some();
    match (answer.status, answer.code().as_deref()) {
        (_, Some("NoSuchBucket" | "InvalidBucketName")) if !resigns => report.fail(
            &section,
            format!("{origin} treats `{host}` as a bucket name ({summary}{server})"),
            format!(
                "configure {host} as a domain name of the gateway (see docs/s3.md), or use [{section}.re_sign]"
            ),
        ),
        (StatusCode::MOVED_PERMANENTLY | StatusCode::TEMPORARY_REDIRECT, _)
        | (_, Some("PermanentRedirect" | "TemporaryRedirect")) => report.warn(
            &section,
            format!("{origin} redirects requests for `{host}` ({summary}{server})"),
            format!(
                "LOTA relays redirects without following them: set the right endpoint, or use [{section}.re_sign]"
            ),
        ),
        (status, _) if status.is_server_error() => {
            let fix = "see the gateway's log";
            report.fail(&section, format!("{origin} answers {summary}{server}"), fix);
        }
        (_, Some(_)) => report.ok(&section, format!("{origin} answers like S3: {summary}{server}")),
        (StatusCode::OK, None) if answer.body.contains("<ListAllMyBucketsResult") => {
            report.ok(&section, format!("{origin} answers like S3, also to anonymous requests{server}"));
        }
        (_, None) => report.warn(
            &section,
            format!("{origin} does not answer like S3: {summary}{server}, without an error in XML"),
            "check that it is the S3 endpoint, not a web server or a console",
        ),
    }
}

fn clock(report: &mut CheckReport<'_>, skew: Option<Duration>) {
    let fix = "run a time service such as chrony on the node: signatures and peer requests expire";
    match skew {
        None => report.warn("clock", "the gateway sends no Date header", "compare the clocks manually"),
        Some(skew) => {
            let what = format!("this node's clock and the gateway's are {} s apart", skew.as_secs());
            match skew {
                _ if skew >= MAX_CLOCK_SKEW => report.fail("clock", what, fix),
                _ if skew >= WARN_CLOCK_SKEW => report.warn("clock", what, fix),
                _ => report.ok("clock", what),
            }
        }
    }
}

/// Runs the part of the verification that needs no client: the gateway must refuse an unknown credential.
async fn verification(report: &mut CheckReport<'_>, upstream: &Upstream, origin: &Origin) {
    let nobody = Credential {
        access_key: "LOTACHECKNOBODY00000".to_owned(),
        secret_key: Secret::from(hex::encode(rand::random::<[u8; 16]>())),
        session_token: None,
    };
    let Some(name) = ObjectName::from_parts(origin, "lota-check", "no-such-object", None) else { return };
    let Ok(mut request) = Signer::new(&nobody, "us-east-1").object(Method::GET, origin, &name) else {
        return;
    };
    request.headers_mut().insert(header::IF_NONE_MATCH, HeaderValue::from_static(MADE_UP));
    let fix = "requests would be proxied, and nothing served from the cache: is there a cache in front of it? Name the \
                gateway itself";
    match ask(upstream, request).await {
        Ok(answer) if answer.status.is_success() || answer.status == StatusCode::NOT_MODIFIED => {
            let what = format!("{origin} answers {} to an unknown credential", answer.summary());
            report.fail("verification", what, fix);
        }
        Ok(answer) if matches!(answer.status.as_u16(), 400 | 401 | 403) => report.ok(
            "verification",
            format!(
                "{origin} refuses an unknown credential: {}. The rest needs a client's request; see `lota gateway \
                 status`",
                answer.summary()
            ),
        ),
        Ok(answer) => {
            let what = format!("{origin} answers {} to an unknown credential", answer.summary());
            report.warn("verification", what, "inconclusive; verification is repeated with the first hit");
        }
        Err(error) => report.warn("verification", error, "verification is repeated with the first hit"),
    }
}

/// Checks that the backend knows LOTA's own credential.
async fn check_backend(report: &mut CheckReport<'_>, config: &Config, configured: &ConfiguredGateway<'_>) {
    let (section, gateway) = (configured.name.backend_section(), configured.gateway);
    let Some(backend) = configured.backend else {
        if config.cache.after_write != AfterWrite::Off {
            let what = format!(
                "no [{section}]: LOTA neither fetches nor keeps what clients write there (cache.after_write)"
            );
            report.warn(&section, what, format!("add [{section}]"));
        }
        if gateway.re_sign.is_none() && gateway.direct_allow.is_empty() {
            let fix =
                format!("with [{section}], LOTA also fills signed ranges, and uses several requests at once");
            report.warn(&section, format!("no [{section}]: fills use clients' own requests"), fix);
        }
        return;
    };
    // An unreadable file is reported by the check of files.
    let Ok(credential) = backend.credential() else { return };
    let signer = Signer::new(&credential, &backend.region);
    for endpoint in &backend.endpoints {
        if !is_reached(report, &section, &format!("{section}.endpoints"), endpoint).await {
            continue;
        }
        let Some(upstream) = upstream(report, endpoint) else { continue };
        let Ok(request) = signer.request(Method::GET, endpoint, "/", &[]) else { continue };
        match ask(&upstream, request).await {
            Ok(answer) => is_known(report, &section, endpoint, &answer),
            Err(error) => {
                let what = format!("{endpoint} does not answer: {error}");
                report.fail(&section, what, "check that it is the S3 endpoint of the storage");
            }
        }
    }
}

/// Evaluates the answer to a signed `GET /`.
fn is_known(report: &mut CheckReport<'_>, section: &str, endpoint: &Origin, answer: &ServerAnswer) {
    let summary = answer.summary();
    let refused = format!("{endpoint} refuses LOTA's own credential: {summary}");
    match (answer.status, answer.code().as_deref().unwrap_or_default()) {
        (status, _) if status.is_success() => {
            report.ok(section, format!("{endpoint} knows LOTA's own credential"));
        }
        (StatusCode::FORBIDDEN, "AccessDenied") => report.ok(
            section,
            format!("{endpoint} knows LOTA's own credential, which is not allowed to list buckets; LOTA does not need to"),
        ),
        (_, "InvalidAccessKeyId") => {
            report.fail(section, refused, format!("check access_key in {section}.credential_file"));
        }
        (_, "SignatureDoesNotMatch") => {
            report.fail(
                section,
                refused,
                format!("check secret_key in {section}.credential_file"),
            );
        }
        (_, "RequestTimeTooSkewed") => report.fail(section, refused, "set this node's clock"),
        (_, "AuthorizationHeaderMalformed" | "InvalidRegion") => {
            report.fail(section, refused, format!("set {section}.region to this server's"));
        }
        (_, "ExpiredToken" | "InvalidToken") => {
            report.fail(
                section,
                refused,
                "invalid session_token: use a credential that does not expire",
            );
        }
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
            report.fail(section, refused, "see the server's log");
        }
        _ => report.warn(
            section,
            format!("{endpoint} answers {summary} to a request for its buckets"),
            "check lota_fills_total after the first fill",
        ),
    }
}

fn upstream(report: &mut CheckReport<'_>, origin: &Origin) -> Option<Upstream> {
    match Upstream::new(origin.tls) {
        Ok(upstream) => Some(upstream.without_retries()),
        Err(error) => {
            let fix = "install the package `ca-certificates`, or set SSL_CERT_FILE";
            report.fail("tls", format!("cannot load the system's root certificates: {error}"), fix);
            None
        }
    }
}
