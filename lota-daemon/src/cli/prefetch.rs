//! `lota prefetch`: loads objects into the cluster's cache by requesting the first byte of each with HEAD, and of
//! each stripe of those that are in stripes.

use std::{
    collections::HashSet,
    env, fmt,
    fs::File,
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    num::NonZeroU64,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Limited};
use hyper::{HeaderMap, Method, StatusCode};
use indicatif::{ProgressBar, ProgressStyle};
use lota_s3::{
    Credential, Secret,
    canonical::{QUERY, path},
    headers::{LOTA_CACHE, LOTA_STRIPE_LENGTH},
    signing::Signer,
};
use percent_encoding::{percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep_until, timeout};

use crate::{
    cli::args::Prefetch,
    http::{empty, upstream::Upstream},
    process::escape::plain,
};

/// Maximum size of a page of a listing in bytes: a thousand keys of one kilobyte, escaped.
const MAX_PAGE: usize = 16 << 20;
/// Timeout for one response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for which a stripe is requested that its owner cannot fetch yet, for example because others are being filled.
const STRIPE_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of attempts for each request.
const ATTEMPTS: u32 = 3;

/// Objects to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects {
    bucket: String,
    prefix: String,
}

impl FromStr for Objects {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not of the form `s3://bucket/prefix`");
        let rest = text.strip_prefix("s3://").ok_or_else(wrong)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if bucket.is_empty() || !bucket.bytes().all(sound) {
            return Err(wrong());
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

/// Result of a prefetch.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Objects whose fill has started.
    pub staged: u64,
    /// Objects that were cached, or being filled, already.
    pub there: u64,
    /// Objects that an earlier run has finished.
    pub skipped: u64,
    /// Objects that could not be requested.
    pub failed: u64,
    /// Error of the first of them.
    pub first_failure: String,
    /// Bytes of all objects that were neither skipped nor failed.
    pub bytes: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { staged, there, skipped, failed, bytes, .. } = self;
        write!(
            f,
            "{staged} loading, {there} already cached, {skipped} skipped, {failed} failed; {bytes} bytes"
        )
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    contents: Vec<ListedKey>,
    next_continuation_token: Option<String>,
    encoding_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedKey {
    key: String,
    size: u64,
}

/// Runs the prefetch.
///
/// # Errors
/// If the objects cannot be listed. An object that cannot be requested is only counted.
pub async fn run(options: &Prefetch) -> Result<Summary> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(access_key), Some(secret)) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"))
    else {
        bail!("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a credential that may list and read")
    };
    let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
    let credential = Credential {
        access_key,
        secret_key: Secret::from(secret),
        session_token: variable("AWS_SESSION_TOKEN").map(Secret::from),
    };
    let client = ListClient {
        signer: Signer::new(&credential, region.as_deref().unwrap_or("us-east-1")),
        upstream: Upstream::new(options.endpoint.tls)?,
        options,
    };
    let mut done = Done::open(options)?;
    let progress = match options.json {
        true => ProgressBar::hidden(),
        false => ProgressBar::no_length(),
    };
    progress.set_style(ProgressStyle::with_template("{spinner} listed {msg}")?);
    let mut objects = Vec::new();
    client
        .list(|page| {
            objects.extend(page);
            progress.set_message(objects.len().to_string());
            progress.tick();
        })
        .await?;
    let mut summary = Summary::default();
    let listed = objects.len();
    objects.retain(|object| !done.names.contains(&object.key));
    summary.skipped = (listed - objects.len()) as u64;

    progress.set_length(objects.iter().map(|object| object.size).sum());
    progress.set_style(ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}  {msg}",
    )?);
    let (began, mut before) = (Instant::now(), 0u64);
    let paced = objects.iter().map(|object| {
        let client = &client;
        let staging = client.stage(object, began, before);
        before += object.size;
        async move { (object, staging.await) }
    });
    let mut requests = stream::iter(paced).buffer_unordered(options.jobs.max(1));
    while let Some((object, staged)) = requests.next().await {
        match staged {
            Ok(was_there) => {
                *(if was_there { &mut summary.there } else { &mut summary.staged }) += 1;
                summary.bytes += object.size;
                done.add(&object.key)?;
            }
            Err(error) => {
                summary.failed += 1;
                if summary.first_failure.is_empty() {
                    summary.first_failure = failure(&object.key, &error);
                }
            }
        }
        progress.inc(object.size);
        progress.set_message(plain(&object.key));
    }
    progress.finish_and_clear();
    Ok(summary)
}

/// Describes a failure in one line. Keys and servers' texts may contain control characters.
fn failure(key: &str, error: &anyhow::Error) -> String {
    plain(&format!("{key}: {error:#}"))
}

/// Result of one request.
struct Staged {
    /// Whether the object or the stripe was cached, or being filled, already.
    was_there: bool,
    /// Length of stripes in bytes, if it was a stripe.
    stripe: Option<NonZeroU64>,
}

struct ListClient<'a> {
    signer: Signer,
    upstream: Upstream,
    options: &'a Prefetch,
}

impl ListClient<'_> {
    async fn list(&self, mut each: impl FnMut(Vec<ListedKey>)) -> Result<()> {
        let Objects { bucket, prefix } = &self.options.objects;
        let mut token: Option<String> = None;
        loop {
            // SigV4 requires the parameters in this order.
            let mut query = match &token {
                Some(token) => format!("continuation-token={}&", utf8_percent_encode(token, QUERY)),
                None => String::new(),
            };
            query += &format!("encoding-type=url&list-type=2&prefix={}", utf8_percent_encode(prefix, QUERY));
            let (status, _, body) = self.ask(Method::GET, &format!("/{bucket}?{query}"), &[]).await?;
            let body = String::from_utf8(body).context("LIST response is not UTF-8")?;
            ensure!(status == StatusCode::OK, "cannot list s3://{bucket}/{prefix}: {status}: {body}");
            let mut page: Page = quick_xml::de::from_str(&body).context("LIST response is not valid XML")?;
            // Some servers ignore `encoding-type`; those that support it encode a space as a plus sign.
            let is_encoded = page.encoding_type.as_deref() == Some("url");
            for object in page.contents.iter_mut().filter(|_| is_encoded) {
                let key = object.key.replace('+', " ");
                object.key = percent_decode_str(&key)
                    .decode_utf8()
                    .context("a key in the LIST response is not UTF-8")?
                    .into_owned();
            }
            each(page.contents);
            token = page.next_continuation_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(());
            }
        }
    }

    /// Requests one object, or each stripe of it, after `before` bytes of others since `began`. Returns whether all of it was
    /// cached already.
    async fn stage(&self, object: &ListedKey, began: Instant, before: u64) -> Result<bool> {
        self.wait_turn(began, before).await;
        let target = path(&self.options.objects.bucket, &object.key);
        let Staged { mut was_there, stripe } = self.stage_at(&target, 0).await?;
        let Some(length) = stripe else { return Ok(was_there) };
        let mut start = length.get();
        while start < object.size {
            self.wait_turn(began, before.saturating_add(start)).await;
            was_there &= self.stage_stripe(&target, start).await?;
            start = start.saturating_add(length.get());
        }
        Ok(was_there)
    }

    /// Waits until the rate limit allows what follows `before` bytes since `began`.
    async fn wait_turn(&self, began: Instant, before: u64) {
        if let Some(rate) = self.options.rate {
            let milliseconds = u128::from(before) * 1000 / u128::from(rate.0.max(1));
            let turn = Duration::from_millis(u64::try_from(milliseconds).unwrap_or(u64::MAX));
            sleep_until((began + turn).into()).await;
        }
    }

    /// Requests the stripe with this byte until its owner has or fetches it. Returns whether it was cached already.
    async fn stage_stripe(&self, target: &str, byte: u64) -> Result<bool> {
        let began = Instant::now();
        loop {
            let staged = self.stage_at(target, byte).await?;
            if staged.stripe.is_some() {
                return Ok(staged.was_there);
            }
            ensure!(
                began.elapsed() < STRIPE_TIMEOUT,
                "the stripe with byte {byte} is not fetched; see limits.fills and limits.fill_overread, and lota_uncached_total"
            );
            tokio::time::sleep(Duration::from_millis(rand::random_range(200..1000))).await;
        }
    }

    /// Requests the object or the stripe with this byte.
    async fn stage_at(&self, target: &str, byte: u64) -> Result<Staged> {
        let (status, headers, _) =
            self.ask(Method::HEAD, target, &[("range", &format!("bytes={byte}-{byte}"))]).await?;
        // An empty object has no first byte.
        ensure!(status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE, "answered {status}");
        let value = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let cache = value(LOTA_CACHE);
        ensure!(
            !cache.is_empty() || !status.is_success(),
            "the response does not come from LOTA; check --endpoint"
        );
        let was_there = cache.starts_with("hit") || cache.starts_with("fill");
        Ok(Staged { was_there, stripe: value(LOTA_STRIPE_LENGTH).parse().ok() })
    }

    /// Sends a request. Returns the status, the headers and the body. Retries without a response or after a
    /// server error.
    async fn ask(
        &self,
        method: Method,
        target: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(StatusCode, HeaderMap, Vec<u8>)> {
        let mut attempt = 1;
        loop {
            let response = timeout(RESPONSE_TIMEOUT, self.ask_once(method.clone(), target, headers)).await;
            match response.unwrap_or_else(|_| bail!("no response within {} s", RESPONSE_TIMEOUT.as_secs())) {
                Ok(answer) if attempt == ATTEMPTS || !answer.0.is_server_error() => return Ok(answer),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(rand::random_range(200..600)) * attempt).await;
            attempt += 1;
        }
    }

    async fn ask_once(
        &self,
        method: Method,
        target: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(StatusCode, HeaderMap, Vec<u8>)> {
        let request = self
            .signer
            .request(method, &self.options.endpoint, target, headers)
            .map_err(anyhow::Error::msg)?;
        let about = || {
            format!("cannot reach {}; check that this node or pod has access to LOTA", self.options.endpoint)
        };
        let (parts, body) =
            self.upstream.send(request.map(|()| empty())).await.with_context(about)?.into_parts();
        let body = Limited::new(body, MAX_PAGE).collect().await.map_err(|error| anyhow::anyhow!(error))?;
        Ok((parts.status, parts.headers, body.to_bytes().to_vec()))
    }
}

/// Objects that this run and earlier ones have finished: one percent-encoded key per line.
struct Done {
    names: HashSet<String>,
    file: Option<File>,
}

impl Done {
    fn open(options: &Prefetch) -> Result<Self> {
        let Some(path) = &options.state_file else { return Ok(Self { names: HashSet::new(), file: None }) };
        let about = || format!("cannot use the state file {}", path.display());
        let names = match File::open(path) {
            Ok(file) => BufReader::new(file)
                .lines()
                .map(|line| Ok(percent_decode_str(&line?).decode_utf8()?.into_owned()))
                .collect::<Result<_>>()
                .with_context(about)?,
            Err(error) if error.kind() == ErrorKind::NotFound => HashSet::new(),
            Err(error) => return Err(error).with_context(about),
        };
        let file = File::options().create(true).append(true).open(path).with_context(about)?;
        Ok(Self { names, file: Some(file) })
    }

    fn add(&mut self, key: &str) -> Result<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{}", utf8_percent_encode(key, QUERY)).context("cannot write the list")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let shown = failure("a\nforged: \u{1b}[2J", &anyhow::anyhow!("answered\n500"));
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
    }

    #[test]
    fn objects_are_a_bucket_and_a_prefix() {
        let parse = |text: &str| text.parse::<Objects>().map(|objects| (objects.bucket, objects.prefix));
        assert_eq!(parse("s3://b/a/b c"), Ok(("b".into(), "a/b c".into())));
        assert_eq!(parse("s3://b"), Ok(("b".into(), String::new())));
        for wrong in ["", "b/k", "s3://", "s3:///k", "http://b/k", "s3://b?x/k"] {
            assert!(parse(wrong).unwrap_err().contains("s3://bucket/prefix"), "{wrong}");
        }
    }

    #[test]
    fn a_page_is_read() {
        let page: Page = quick_xml::de::from_str(
            "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>\
             <Contents><Key>a%20b</Key><Size>7</Size></Contents><Contents><Key>c</Key><Size>0</Size><ETag>x</ETag></Contents>\
             <IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></ListBucketResult>",
        )
        .unwrap();
        assert_eq!(
            page.contents.iter().map(|object| (&*object.key, object.size)).collect::<Vec<_>>(),
            [("a%20b", 7), ("c", 0)]
        );
        assert_eq!(page.next_continuation_token.as_deref(), Some("t"));
        let empty: Page = quick_xml::de::from_str("<ListBucketResult/>").unwrap();
        assert!(empty.contents.is_empty() && empty.next_continuation_token.is_none());
    }
}
