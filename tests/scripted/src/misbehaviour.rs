//! Named deviations from a correct gateway.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use crate::{
    answer::Answer,
    correct::CorrectGateway,
    server::{Script, SeenRequest, lock},
};

/// A deviation. The caches store objects that a correct gateway returned with 200 or 304 to a GET, and then answer
/// every client without authorization: 304 if `If-None-Match` matches, else 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// None: the correct gateway itself.
    None,
    /// A cache whose key is the URL with its query, without signature parameters.
    CacheByUrl,
    /// A cache whose key is the whole URL, signature parameters included.
    CacheByWholeUrl,
    /// A cache by path, which forwards requests with `Cache-Control: no-cache` or `Pragma: no-cache`.
    CacheUnlessNoCache,
    /// A cache by path, and by the value of this request header.
    CacheByVary(String),
    /// A cache by path that answers after the gateway has answered this number of requests for the path.
    CacheDelayed(usize),
    /// A cache by path that forwards requests with `Range`.
    CacheOfWholeObjects,
    /// A cache by path that forwards requests without `Range`.
    CacheOfRanges,
    /// A cache by path that takes `Range: bytes=0-` for no `Range`, and forwards requests with another one.
    CacheOfRangesFromStart,
    /// 304 to every request with `If-None-Match`, without authorization.
    NotModifiedForEveryone,
    /// 304 to every request with `If-None-Match` and a valid signature, whatever the ETag.
    NotModifiedWhateverEtag,
    /// 304 without `ETag` and `Last-Modified`, as Ceph RGW does.
    BareNotModified,
    /// 200 with a body to any conditional request.
    ConditionsIgnored,
    /// Bytes after the head of each 304 and of each answer to HEAD, after this delay.
    BodyAfterHead(Duration),
    /// A body of one byte less than declared, then a close.
    ShortBody,
    /// A body of one byte more than declared.
    LongBody,
    /// Half of each body, then a close.
    ClosesMidway,
    /// A delay before each answer.
    Slow(Duration),
    /// This number of additional headers in each answer.
    ManyHeaders(usize),
    /// `200` with the correct ETag and no bytes to requests with `x-amz-rdma-token`.
    Rdma,
    /// A body that is declared as `gzip`, with `Vary`, to requests with `Accept-Encoding: gzip`.
    GzipIfAccepted,
    /// This status to every request, without a body.
    Always(u16),
}

impl Misbehaviour {
    /// Returns a script with this deviation from `correct`.
    pub fn script(self, correct: CorrectGateway) -> impl Script {
        Deviant { what: self, correct, kept: Mutex::default() }
    }
}

struct Deviant {
    what: Misbehaviour,
    correct: CorrectGateway,
    /// Entries of the cache, by key.
    kept: Mutex<HashMap<String, Kept>>,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    /// Number of requests that the gateway has answered.
    passed: usize,
    /// ETag and answer of the object.
    object: Option<(String, Answer)>,
}

impl Script for Deviant {
    fn answer(&self, request: &SeenRequest) -> Answer {
        let correct = || self.correct.answer(request);
        let has = |name: &str, part: &str| {
            request.header(name).is_some_and(|value| value.to_ascii_lowercase().contains(part))
        };
        let is_conditional = request.header("if-none-match").is_some();
        let path = || request.path().to_owned();
        match &self.what {
            Misbehaviour::None => correct(),
            Misbehaviour::CacheByUrl => self.cached(request, unsigned_url(&request.target), 1),
            Misbehaviour::CacheByWholeUrl => self.cached(request, request.target.clone(), 1),
            Misbehaviour::CacheUnlessNoCache
                if has("cache-control", "no-cache") || has("pragma", "no-cache") =>
            {
                self.keep(request, path(), correct())
            }
            Misbehaviour::CacheUnlessNoCache => self.cached(request, path(), 1),
            Misbehaviour::CacheByVary(name) => {
                let key = format!("{} {}", path(), request.header(name).unwrap_or_default());
                self.cached(request, key, 1)
            }
            Misbehaviour::CacheDelayed(first) => self.cached(request, path(), *first),
            Misbehaviour::CacheOfWholeObjects if request.header("range").is_some() => correct(),
            Misbehaviour::CacheOfRanges if request.header("range").is_none() => correct(),
            Misbehaviour::CacheOfRangesFromStart
                if request.header("range").is_some_and(|range| range != "bytes=0-") =>
            {
                correct()
            }
            Misbehaviour::CacheOfWholeObjects
            | Misbehaviour::CacheOfRanges
            | Misbehaviour::CacheOfRangesFromStart => self.cached(request, path(), 1),
            Misbehaviour::NotModifiedForEveryone if is_conditional => Answer::status(304),
            Misbehaviour::NotModifiedWhateverEtag
                if is_conditional && matches!(correct().code(), 200 | 206) =>
            {
                Answer::status(304)
            }
            Misbehaviour::NotModifiedForEveryone | Misbehaviour::NotModifiedWhateverEtag => correct(),
            Misbehaviour::BareNotModified => match correct() {
                answer if answer.code() == 304 => {
                    answer.without_header("etag").without_header("last-modified")
                }
                answer => answer,
            },
            Misbehaviour::ConditionsIgnored => {
                let mut plain = request.clone();
                plain.headers.retain(|(name, _)| !name.to_ascii_lowercase().starts_with("if-"));
                self.correct.answer(&plain)
            }
            Misbehaviour::BodyAfterHead(delay) => match correct() {
                answer if answer.code() == 304 || request.method == "HEAD" => {
                    answer.extra(*delay, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
                }
                answer => answer,
            },
            Misbehaviour::ShortBody => {
                with_body(correct(), |answer, length| answer.truncate(length - 1).close())
            }
            Misbehaviour::LongBody => with_body(correct(), |answer, _| answer.extra(Duration::ZERO, "x")),
            Misbehaviour::ClosesMidway => {
                with_body(correct(), |answer, length| answer.truncate(length / 2).close())
            }
            Misbehaviour::Slow(time) => correct().delay(*time),
            Misbehaviour::ManyHeaders(count) => {
                (0..*count).fold(correct(), |answer, at| answer.header(&format!("x-amz-meta-{at}"), "x"))
            }
            Misbehaviour::Rdma if request.header("x-amz-rdma-token").is_some() => {
                with_body(correct(), |answer, _| answer.header("x-amz-rdma-reply", "200").body(""))
            }
            Misbehaviour::Rdma => correct(),
            Misbehaviour::GzipIfAccepted => with_body(correct(), |answer, _| {
                let answer = answer.header("vary", "Accept-Encoding");
                match has("accept-encoding", "gzip") {
                    true => answer.header("content-encoding", "gzip").body("gzip bytes"),
                    false => answer,
                }
            }),
            Misbehaviour::Always(status) => Answer::status(*status),
        }
    }
}

impl Deviant {
    /// Answers from the cache entry `key` once the gateway has answered `first` requests; else by the gateway.
    fn cached(&self, request: &SeenRequest, key: String, first: usize) -> Answer {
        if request.method != "GET" && request.method != "HEAD" {
            return self.correct.answer(request);
        }
        let kept = lock(&self.kept).get(&key).cloned();
        if let Some(Kept { passed, object: Some((etag, whole)) }) = kept
            && passed >= first
        {
            let is_same = request.header("if-none-match").is_some_and(|tags| tags.contains(&etag));
            return if is_same { Answer::status(304).header("etag", &etag) } else { whole };
        }
        let answer = self.correct.answer(request);
        self.keep(request, key, answer)
    }

    /// Stores the object if the gateway has authorized the forwarded request, as a cache would.
    fn keep(&self, request: &SeenRequest, key: String, answer: Answer) -> Answer {
        let mut kept = lock(&self.kept);
        let kept = kept.entry(key).or_default();
        kept.passed += 1;
        if matches!(answer.code(), 200 | 206 | 304) {
            let mut plain = request.clone();
            plain.headers.retain(|(name, _)| {
                let name = name.to_ascii_lowercase();
                !name.starts_with("if-") && name != "range"
            });
            let whole = self.correct.answer(&plain);
            if let Some(etag) = whole.header_value("etag") {
                kept.object = Some((etag, whole));
            }
        }
        answer
    }
}

fn with_body(answer: Answer, change: impl FnOnce(Answer, usize) -> Answer) -> Answer {
    match answer.body_length() {
        0 => answer,
        length => change(answer, length),
    }
}

/// Removes the parameters of a signature.
fn unsigned_url(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let is_other = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default().to_ascii_lowercase();
        let others = ["signature", "awsaccesskeyid", "expires"];
        !name.starts_with("x-amz-") && !others.contains(&name.as_str())
    };
    let rest: Vec<&str> = query.split('&').filter(is_other).collect();
    if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) }
}
