use std::time::{Duration, UNIX_EPOCH};

use aws_sigv4::sign::v4::generate_signing_key;
use proptest::prelude::*;

use super::*;

// The example of AWS's documentation: 65 KiB of `a`, in chunks of 64 KiB.
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const REQUEST: &str = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
const SIGNATURES: [&str; 3] = [
    "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
    "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
    "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
];

fn chain(secret: &str) -> ChunkChain {
    let then = UNIX_EPOCH + Duration::from_secs(1_369_353_600);
    let key = generate_signing_key(secret, then, "us-east-1", "s3");
    ChunkChain::new(key.as_ref(), "20130524T000000Z".into(), "us-east-1", REQUEST.into())
}

fn chains() -> Option<Chains> {
    Some(Chains { client: chain(SECRET), ours: chain("ours") })
}

fn headers(length: usize, trailer: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-decoded-content-length", length.to_string().parse().unwrap());
    if !trailer.is_empty() {
        headers.insert("x-amz-trailer", trailer.parse().unwrap());
    }
    headers
}

/// Passes a body in pieces of these sizes; returns the output.
fn through(mut chunks: Chunks, body: &[u8], cuts: &[usize]) -> Result<Vec<u8>, S3Error> {
    let (mut input, mut output, mut rest) = (BytesMut::new(), Vec::new(), body);
    let mut cuts = cuts.iter().copied().chain(std::iter::repeat(usize::MAX));
    loop {
        while let Some(bytes) = chunks.next(&mut input)? {
            output.extend_from_slice(&bytes);
        }
        if rest.is_empty() {
            return if chunks.is_done() { Ok(output) } else { Err(S3Error::incomplete_body("cut")) };
        }
        let (piece, left) = rest.split_at(cuts.next().unwrap_or_default().clamp(1, rest.len()));
        input.extend_from_slice(piece);
        rest = left;
    }
}

fn example() -> Vec<u8> {
    let mut body = format!("10000;chunk-signature={}\r\n", SIGNATURES[0]).into_bytes();
    body.extend([b'a'; 65_536]);
    body.extend(format!("\r\n400;chunk-signature={}\r\n", SIGNATURES[1]).bytes());
    body.extend([b'a'; 1024]);
    body.extend(format!("\r\n0;chunk-signature={}\r\n\r\n", SIGNATURES[2]).bytes());
    body
}

/// Returns a signed body in the documented form, with a trailer if there is a checksum.
fn signed(secret: &str, data: &[u8], size: usize, checksum: Option<&str>) -> Vec<u8> {
    let (mut chain, mut body) = (chain(secret), Vec::new());
    for chunk in data.chunks(size).chain([&[][..]]) {
        let signature = chain.chunk(&hex::encode(Sha256::digest(chunk)));
        body.extend(format!("{:x};chunk-signature={signature}\r\n", chunk.len()).bytes());
        body.extend(chunk);
        if !chunk.is_empty() {
            body.extend(b"\r\n");
        }
    }
    if let Some(checksum) = checksum {
        let line = format!("x-amz-checksum-crc32c:{checksum}\n");
        let signature = chain.trailers(&hex::encode(Sha256::digest(&line)));
        body.extend(format!("{line}\r\nx-amz-trailer-signature:{signature}\r\n").bytes());
    }
    body.extend(b"\r\n");
    body
}

fn crc32c(data: &[u8]) -> String {
    let mut checksum = ChecksumAlgorithm::Crc32c.into_impl();
    checksum.update(data);
    checksum.header_value().to_str().unwrap().to_owned()
}

#[test]
fn the_documented_example_is_accepted() {
    let chunks = Chunks::new(&headers(66_560, ""), chains(), false).unwrap();
    let output = through(chunks, &example(), &[7; 20_000]).unwrap();
    assert_eq!(output.len(), example().len(), "the length is part of the request's head");
    assert_eq!(output, signed("ours", &[b'a'; 66_560], 65_536, None));
}

#[test]
fn a_wrong_signature_withholds_its_chunk() {
    let length = example().len();
    // In the first chunk, the second chunk's signature, and the last's.
    for (at, passed) in [(100, 0), (65_656, 65_626), (length - 10, 66_738)] {
        let mut body = example();
        body[at] ^= 1;
        let mut chunks = Chunks::new(&headers(66_560, ""), chains(), false).unwrap();
        let (mut input, mut output) = (BytesMut::from(&body[..]), Vec::new());
        let error = loop {
            match chunks.next(&mut input) {
                Ok(Some(bytes)) => output.extend_from_slice(&bytes),
                Ok(None) => panic!("it went through"),
                Err(error) => break error,
            }
        };
        assert_eq!((error.code, output.len()), ("SignatureDoesNotMatch", passed), "{at}");
    }
}

#[test]
fn trailers_are_checked() {
    let (data, right) = (b"some bytes", crc32c(b"some bytes"));
    let send = |chains, body: &[u8], announced| {
        through(Chunks::new(&headers(data.len(), announced), chains, true).unwrap(), body, &[])
            .map_err(|error| error.code)
    };
    let body = signed(SECRET, data, 4, Some(&right));
    let ours = signed("ours", data, 4, Some(&right));
    assert_eq!(send(chains(), &body, "x-amz-checksum-crc32c"), Ok(ours));
    let wrong = signed(SECRET, data, 4, Some("AAAAAA=="));
    assert_eq!(send(chains(), &wrong, "x-amz-checksum-crc32c"), Err("BadDigest"));
    assert_eq!(send(chains(), &body, "x-amz-checksum-sha256"), Err("IncompleteBody"));
    let unsigned = format!("4;chunk-signature={}\r\n", "0".repeat(64));
    assert_eq!(send(chains(), unsigned.as_bytes(), "x-amz-checksum-crc32c"), Err("IncompleteBody"));

    for end in ["\r\n\r\n", "\n\r\n\r\n"] {
        let body = |sum: &str| format!("a\r\nsome bytes\r\n0\r\nx-amz-checksum-crc32c:{sum}{end}");
        let sent = body(&right);
        assert_eq!(send(None, sent.as_bytes(), "x-amz-checksum-crc32c"), Ok(sent.clone().into_bytes()));
        assert_eq!(send(None, body("AAAAAA==").as_bytes(), "x-amz-checksum-crc32c"), Err("BadDigest"));
        assert_eq!(send(None, sent.as_bytes(), ""), Err("IncompleteBody"));
    }
}

#[test]
fn malformed_bodies_are_refused() {
    for body in [
        "",
        "4\r\nabc",
        "3\r\nabc\r\n0\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "4\r\nabcd\r\n0\r\n\r\n",
        "2\r\nab\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\n\r\nmore",
        "3\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "3;x=y\r\nabc\r\n0\r\n\r\n",
        "00000000000000003\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nx-amz-meta-a:b\r\n\r\n",
        "3\r\nabc\r\n0\r\nnone\r\n\r\n",
    ] {
        let chunks = Chunks::new(&headers(3, ""), None, true).unwrap();
        let refused = through(chunks, body.as_bytes(), &[]).unwrap_err();
        assert_eq!(refused.code, "IncompleteBody", "{body:?}");
    }
    assert!(
        through(Chunks::new(&headers(3, ""), None, true).unwrap(), b"3\r\nabc\r\n0\r\n\r\n", &[]).is_ok()
    );
    let long = "0".repeat(MAX_LINE + 1);
    assert!(through(Chunks::new(&headers(3, ""), None, true).unwrap(), long.as_bytes(), &[]).is_err());
    let large = format!("{:x};chunk-signature={REQUEST}\r\n", MAX_CHUNK + 1);
    let chunks = Chunks::new(&headers(1 << 30, ""), chains(), false).unwrap();
    assert_eq!(through(chunks, large.as_bytes(), &[]).unwrap_err().code, "InvalidRequest");
    assert!(Chunks::new(&HeaderMap::new(), None, true).is_err());
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same_output(
        data in proptest::collection::vec(any::<u8>(), 0..300),
        size in 1..100usize,
        cuts in proptest::collection::vec(1..40usize, 0..60),
    ) {
        let sum = crc32c(&data);
        let chunks = Chunks::new(&headers(data.len(), "x-amz-checksum-crc32c"), chains(), true).unwrap();
        let output = through(chunks, &signed(SECRET, &data, size, Some(&sum)), &cuts).unwrap();
        prop_assert_eq!(output, signed("ours", &data, size, Some(&sum)));
    }

    #[test]
    fn no_input_panics(body in "([0-9a-f]{1,3}(;chunk-signature=[0-9a-f]{0,3})?\r\n|[a-c:]{0,5}|\r\n)*") {
        for chains in [None, chains()] {
            let chunks = Chunks::new(&headers(20, "x-amz-checksum-crc32"), chains, true).unwrap();
            let _ = through(chunks, body.as_bytes(), &[3; 9]);
        }
    }
}
