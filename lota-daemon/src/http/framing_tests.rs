use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1024;

/// Returns the bytes that pass, given in pieces cut at `cuts`, and the error.
fn follow(bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<Rejected>) {
    let mut framing = Framing::new(LIMIT, 16);
    let mut passed = Vec::new();
    let mut cuts: Vec<usize> =
        cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    for piece in cuts.windows(2) {
        if let Err(wrong) = framing.take(&bytes[piece[0]..piece[1]], &mut passed, |_| true) {
            return (passed, Some(wrong));
        }
    }
    (passed, None)
}

#[test]
fn sound_requests_pass_as_they_are() {
    for sound in [
        "GET /b/k HTTP/1.1\r\nHost: cwlota.com\r\n\r\n",
        "GET /b/k HTTP/1.0\r\nHost: cwlota.com\r\n\r\nGET /second HTTP/1.0\r\n\r\n",
        "PUT /b/k HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /GET / HTTP/1.1\r\n\r\n",
        "PUT /b/k HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "PUT /b/k HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n1;x=y\r\na\r\n0A\r\n\n\n\n\n\n\n\n\n\n\n\r\n0\r\nX-T: 1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "GET http://b.cwlota.com/k HTTP/1.1\r\nHost: b.cwlota.com\r\n\r\n",
    ] {
        let (passed, wrong) = follow(sound.as_bytes(), &[]);
        assert!(wrong.is_none(), "{sound:?}: {wrong:?}");
        assert_eq!(String::from_utf8(passed).unwrap(), sound);
    }
    let (passed, wrong) = follow(b"\r\nGET / HTTP/1.1\r\n\r\n", &[]);
    assert!(wrong.is_none() && passed == b"GET / HTTP/1.1\r\n\r\n");
}

/// The shapes by which requests are smuggled, and their kin.
#[test]
fn smuggling_shapes_are_refused_before_anyone_sees_them() {
    let head = |headers: &str| format!("PUT /b/k HTTP/1.1\r\nHost: h\r\n{headers}\r\n\r\n");
    use Reject::{
        BareLineFeed, Connect, DuplicateLength, HeadTooLarge, Length, LengthAndTransferEncoding, Malformed,
        Target, TooManyHeaders, TransferEncoding,
    };
    use httparse::Error::{HeaderName, HeaderValue, Token, Version};
    for (what, reject, request) in [
        (
            "length and chunked",
            LengthAndTransferEncoding,
            head("Content-Length: 4\r\nTransfer-Encoding: chunked"),
        ),
        (
            "chunked and length",
            LengthAndTransferEncoding,
            head("Transfer-Encoding: chunked\r\nContent-Length: 4"),
        ),
        ("two lengths", DuplicateLength, head("Content-Length: 4\r\nContent-Length: 5")),
        ("the same length twice", DuplicateLength, head("Content-Length: 4\r\nContent-Length: 4")),
        ("a list of lengths", Length, head("Content-Length: 4, 4")),
        ("a signed length", Length, head("Content-Length: +4")),
        ("a negative length", Length, head("Content-Length: -1")),
        ("a hexadecimal length", Length, head("Content-Length: 0x4")),
        ("a huge length", Length, head("Content-Length: 18446744073709551616")),
        ("no length", Length, head("Content-Length:")),
        ("another coding", TransferEncoding, head("Transfer-Encoding: gzip")),
        ("chunked among others", TransferEncoding, head("Transfer-Encoding: gzip, chunked")),
        ("chunked not last", TransferEncoding, head("Transfer-Encoding: chunked, identity")),
        ("chunked twice", TransferEncoding, head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked")),
        ("xchunked", TransferEncoding, head("Transfer-Encoding: xchunked")),
        ("quoted chunked", TransferEncoding, head("Transfer-Encoding: \"chunked\"")),
        ("a vertical tab", Malformed(HeaderValue), head("Transfer-Encoding: \x0bchunked")),
        ("a space before the colon", Malformed(HeaderName), head("Transfer-Encoding : chunked")),
        ("a folded line", Malformed(HeaderName), head("X-A: 1\r\n Transfer-Encoding: chunked")),
        ("a line that folds at once", Malformed(HeaderName), "GET / HTTP/1.1\r\n Host: h\r\n\r\n".into()),
        ("a bare line feed", BareLineFeed, "GET / HTTP/1.1\nHost: h\r\n\r\n".into()),
        ("a bare line feed at the end", BareLineFeed, "GET / HTTP/1.1\r\nHost: h\r\n\n".into()),
        ("a bare carriage return", Malformed(HeaderValue), head("X-A: 1\rTransfer-Encoding: chunked")),
        ("a zero byte", Malformed(HeaderValue), head("X-A: \0")),
        ("a header without a name", Malformed(HeaderName), head(": x")),
        ("a header without a colon", Malformed(HeaderName), head("X-A")),
        (
            "chunked in HTTP/1.0",
            TransferEncoding,
            "PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
        ),
        ("HTTP/0.9", Malformed(Token), "GET /\r\n\r\n".into()),
        ("HTTP/2's preface", Malformed(Version), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        ("HTTP/1.2", Malformed(Version), "GET / HTTP/1.2\r\nHost: h\r\n\r\n".into()),
        ("two spaces", Malformed(Token), "GET  / HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a space in the target", Malformed(Version), "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a fragment", Target, "DELETE /public/victim#x HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a fragment in the query", Target, "GET /b?x#y HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a fragment behind a host", Target, "GET http://h/b/k#x HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("an absolute target without a path", Target, "GET http://h HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("an absolute target with a query only", Target, "GET http://h?x HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("an absolute target with a user", Target, "GET http://u@h/b/k HTTP/1.1\r\nHost: u@h\r\n\r\n".into()),
        ("another scheme", Target, "GET ftp://h/b/k HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("an authority for a target", Target, "GET h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n".into()),
        ("a relative target", Target, "GET b/k HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a control byte in the target", Malformed(Token), "GET /b\x01 HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a padded length", Length, head("Content-Length: 04")),
        ("a tunnel", Connect, "CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("too many headers", TooManyHeaders(16), head(&"A: b\r\n".repeat(20))),
        ("a head too long", HeadTooLarge(LIMIT), head(&format!("X-A: {}", "x".repeat(LIMIT)))),
    ] {
        let (passed, wrong) = follow(request.as_bytes(), &[]);
        assert_eq!(wrong, Some(Rejected::Head(reject)), "{what}");
        assert!(passed.is_empty(), "{what} went on");
    }
}

#[test]
fn chunked_bodies_are_followed_to_their_end() {
    use BodyReject::{BareLineFeed, ChunkSize, ChunkTooLong, LineTooLong, Trailer};
    for (reject, body) in [
        (BareLineFeed, "4\nabcd\r\n0\r\n\r\n"),
        (ChunkTooLong, "4\r\nabcde\r\n0\r\n\r\n"),
        (BareLineFeed, "4\r\nabcd\n0\r\n\r\n"),
        (ChunkSize, "4 \r\nabcd\r\n0\r\n\r\n"),
        (ChunkSize, "-4\r\nabcd\r\n0\r\n\r\n"),
        (ChunkSize, "0x4\r\nabcd\r\n0\r\n\r\n"),
        (ChunkSize, "\r\nabcd\r\n0\r\n\r\n"),
        (ChunkSize, "10000000000000000\r\nabcd"),
        (ChunkSize, "4;a\rb\r\nabcd\r\n0\r\n\r\n"),
        (ChunkSize, "g\r\n"),
        (Trailer, "0\r\nX T: 1\r\n\r\n"),
        (Trailer, "0\r\nno colon\r\n\r\n"),
        (Trailer, "0\r\n: no name\r\n\r\n"),
        (BareLineFeed, "0\r\nX: 1\n\r\n"),
        // Refused without the end of the line, which a client that waits for an answer does not send.
        (ChunkSize, "hello"),
        (ChunkSize, "5 x"),
        (ChunkSize, "5\rx"),
        (ChunkSize, "5;\0"),
        (ChunkSize, "\r"),
        (ChunkSize, "00000000000000005"),
        (ChunkTooLong, "5\r\nhellow"),
        (ChunkTooLong, "5\r\nhello\rw"),
        (BareLineFeed, "5\r\nhello\n"),
    ] {
        let request = format!("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let (_, wrong) = follow(request.as_bytes(), &[]);
        assert_eq!(wrong, Some(Rejected::Body(reject)), "{body:?}");
    }
    let endless =
        format!("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}", "A: b\r\n".repeat(LIMIT));
    assert_eq!(follow(endless.as_bytes(), &[]).1, Some(Rejected::Body(LineTooLong)));
}

#[test]
fn bytes_before_a_rejected_request_are_passed_on() {
    let first = "PUT /b/k HTTP/1.1\r\nContent-Length: 2\r\n\r\nab";
    let (passed, wrong) = follow(format!("{first}GET / HTTP/9\r\n\r\nmore").as_bytes(), &[]);
    assert_eq!(passed, first.as_bytes());
    assert!(matches!(wrong, Some(Rejected::Head(Reject::Malformed(_)))));
}

proptest! {
    /// Verifies that a chunk's line is refused at its first invalid byte: every prefix that passes can become a valid line.
    #[test]
    fn a_chunk_line_is_refused_at_its_first_wrong_byte(
        line in "[0-9a-f]{0,17}[ \t;]{0,3}[ -~\u{80}\u{1f}\r]{0,4}|[\\x00-\\x09\\x0b-\\x7f]{0,6}",
        cuts: Vec<usize>,
    ) {
        let begun = format!("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{line}");
        let (_, wrong) = follow(begun.as_bytes(), &[]);
        prop_assert_eq!(wrong, follow(begun.as_bytes(), &cuts).1);
        let has_sound_end = ["", "\n", "\r\n", "1\r\n", ";\r\n"].iter().any(|end| {
            let ended = format!("{begun}{end}");
            ended.ends_with("\r\n") && follow(ended.as_bytes(), &[]).1.is_none()
        });
        prop_assert_eq!(wrong.is_none(), line.is_empty() || has_sound_end, "{:?}", line);
    }

    #[test]
    fn pieces_make_no_difference(
        bytes in "(GET|PUT) / HTTP/1.[01]\r\n(Content-Length: [0-9]\r\n|Transfer-Encoding: chunked\r\n){0,2}\r\n[0-3a\r\n; x]{0,20}",
        cuts: Vec<usize>,
    ) {
        let (whole, wrong) = follow(bytes.as_bytes(), &[]);
        let (pieces, also) = follow(bytes.as_bytes(), &cuts);
        prop_assert_eq!(wrong, also);
        prop_assert_eq!(whole, pieces);
    }

    /// Verifies that the gateway receives the target as the client sent it: hyper's head has the same bytes.
    #[test]
    fn a_target_travels_unchanged_or_is_refused(
        target in "[!-~]{0,12}|/[!-~\u{80}-\u{2000}]{0,12}|(http|HTTP|https)://[a-z@:0-9]{0,5}[!-~]{0,8}|\\*|[\x00-\x7f]{0,9}",
    ) {
        let request = [b"GET ", target.as_bytes(), b" HTTP/1.1\r\nX: y\r\n\r\n"].concat();
        if follow(&request, &[]).1.is_none() {
            let (parts, ()) = hyper::Request::builder().uri(target.as_str()).body(()).unwrap().into_parts();
            let host = parts.uri.authority().map_or("h", |authority| authority.as_str()).to_owned();
            let (mut parts, origin) = (parts, lota_s3::Origin::parse("http://10.0.0.1:9000").unwrap());
            parts.headers.insert("host", host.parse().unwrap());
            let sent = crate::http::RequestHead::of(parts).unwrap().request(&origin, crate::http::empty()).unwrap();
            let sent = sent.into_parts().0.uri.into_parts().path_and_query.unwrap();
            let named = target.get("http://".len() + host.len()..).unwrap_or_default();
            prop_assert!(sent.as_str() == target || sent.as_str() == named, "{target:?} became {sent}");
        }
    }

    #[test]
    fn any_bytes_are_survived_and_nothing_is_added(bytes: Vec<u8>, cuts: Vec<usize>) {
        let (passed, _) = follow(&bytes, &cuts);
        prop_assert!(passed.len() <= bytes.len());
    }
}
