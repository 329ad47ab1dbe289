use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1024;

/// What goes on of bytes that come in pieces cut at `cuts`, and whether anything was wrong.
fn follow(bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<Wrong>) {
    let mut framing = Framing::new(LIMIT, 16);
    let mut passed = Vec::new();
    let mut cuts: Vec<usize> =
        cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    for piece in cuts.windows(2) {
        if let Err(wrong) = framing.take(&bytes[piece[0]..piece[1]], &mut passed) {
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
    for (what, request) in [
        ("length and chunked", head("Content-Length: 4\r\nTransfer-Encoding: chunked")),
        ("chunked and length", head("Transfer-Encoding: chunked\r\nContent-Length: 4")),
        ("two lengths", head("Content-Length: 4\r\nContent-Length: 5")),
        ("the same length twice", head("Content-Length: 4\r\nContent-Length: 4")),
        ("a list of lengths", head("Content-Length: 4, 4")),
        ("a signed length", head("Content-Length: +4")),
        ("a negative length", head("Content-Length: -1")),
        ("a hexadecimal length", head("Content-Length: 0x4")),
        ("a huge length", head("Content-Length: 18446744073709551616")),
        ("no length", head("Content-Length:")),
        ("another coding", head("Transfer-Encoding: gzip")),
        ("chunked among others", head("Transfer-Encoding: gzip, chunked")),
        ("chunked not last", head("Transfer-Encoding: chunked, identity")),
        ("chunked twice", head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked")),
        ("xchunked", head("Transfer-Encoding: xchunked")),
        ("quoted chunked", head("Transfer-Encoding: \"chunked\"")),
        ("a vertical tab", head("Transfer-Encoding: \x0bchunked")),
        ("a space before the colon", head("Transfer-Encoding : chunked")),
        ("a folded line", head("X-A: 1\r\n Transfer-Encoding: chunked")),
        ("a line that folds at once", "GET / HTTP/1.1\r\n Host: h\r\n\r\n".into()),
        ("a bare line feed", "GET / HTTP/1.1\nHost: h\r\n\r\n".into()),
        ("a bare line feed at the end", "GET / HTTP/1.1\r\nHost: h\r\n\n".into()),
        ("a bare carriage return", head("X-A: 1\rTransfer-Encoding: chunked")),
        ("a zero byte", head("X-A: \0")),
        ("a header without a name", head(": x")),
        ("a header without a colon", head("X-A")),
        ("chunked in HTTP/1.0", "PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into()),
        ("HTTP/0.9", "GET /\r\n\r\n".into()),
        ("HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: h\r\n\r\n".into()),
        ("two spaces", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a space in the target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a tunnel", "CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("too many headers", head(&"A: b\r\n".repeat(20))),
        ("a head too long", head(&format!("X-A: {}", "x".repeat(LIMIT)))),
    ] {
        let (passed, wrong) = follow(request.as_bytes(), &[]);
        assert!(matches!(wrong, Some(Wrong::Head(_))), "{what}: {wrong:?}");
        assert!(passed.is_empty(), "{what} went on");
    }
}

#[test]
fn a_chunked_body_is_what_it_says() {
    for body in [
        "4\nabcd\r\n0\r\n\r\n",
        "4\r\nabcde\r\n0\r\n\r\n",
        "4\r\nabcd\n0\r\n\r\n",
        "4 \r\nabcd\r\n0\r\n\r\n",
        "-4\r\nabcd\r\n0\r\n\r\n",
        "0x4\r\nabcd\r\n0\r\n\r\n",
        "\r\nabcd\r\n0\r\n\r\n",
        "10000000000000000\r\nabcd",
        "4;a\rb\r\nabcd\r\n0\r\n\r\n",
        "g\r\n",
        "0\r\nX T: 1\r\n\r\n",
        "0\r\nno colon\r\n\r\n",
        "0\r\n: no name\r\n\r\n",
        "0\r\nX: 1\n\r\n",
    ] {
        let request = format!("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let (_, wrong) = follow(request.as_bytes(), &[]);
        assert!(matches!(wrong, Some(Wrong::Body(_))), "{body:?}: {wrong:?}");
    }
    let endless =
        format!("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}", "A: b\r\n".repeat(LIMIT));
    assert!(matches!(follow(endless.as_bytes(), &[]).1, Some(Wrong::Body(_))));
}

#[test]
fn what_comes_before_a_refusal_goes_on() {
    let first = "PUT /b/k HTTP/1.1\r\nContent-Length: 2\r\n\r\nab";
    let (passed, wrong) = follow(format!("{first}GET / HTTP/9\r\n\r\nmore").as_bytes(), &[]);
    assert_eq!(passed, first.as_bytes());
    assert!(matches!(wrong, Some(Wrong::Head(_))));
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        bytes in "(GET|PUT) / HTTP/1.[01]\r\n(Content-Length: [0-9]\r\n|Transfer-Encoding: chunked\r\n){0,2}\r\n[0-3a\r\n;]{0,20}",
        cuts: Vec<usize>,
    ) {
        let (whole, wrong) = follow(bytes.as_bytes(), &[]);
        let (pieces, also) = follow(bytes.as_bytes(), &cuts);
        prop_assert_eq!(format!("{wrong:?}"), format!("{also:?}"));
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn any_bytes_are_survived_and_nothing_is_added(bytes: Vec<u8>, cuts: Vec<usize>) {
        let (passed, _) = follow(&bytes, &cuts);
        prop_assert!(passed.len() <= bytes.len());
    }
}
