use proptest::prelude::*;

use super::{WriteResult::*, *};

const COMPLETE: &str = "CompleteMultipartUploadResult";
const COPY: &str = "CopyObjectResult";

fn written(etag: &str) -> WriteResult {
    Written(NormalEtag::parse(etag).unwrap())
}

/// Reads a body in pieces of `size` bytes. Returns the result, the number of bytes at which it was known, and the maximum number
/// of bytes in memory.
fn read(root: &'static str, body: &[u8], size: usize) -> (WriteResult, usize, usize) {
    let (mut reader, mut passed, mut most) = (ResultReader::new(root), 0, 0);
    let mut known = (Unrecognized, body.len());
    for piece in body.chunks(size) {
        passed += piece.len();
        if let Some(result) = reader.read(piece) {
            known = (result, passed);
        }
        most = most.max(reader.pending.len() + reader.etag.len());
    }
    (known.0, known.1, most)
}

#[test]
fn only_a_complete_result_reports_success() {
    let padding = " ".repeat(1 << 17);
    let result = format!(
        "<{COMPLETE} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>b</Bucket><ETag>&quot;E-2&quot;</ETag></{COMPLETE}>"
    );
    let declared = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{result}\n");
    let etag = |text: &str| format!("<{COMPLETE}><ETag>{text}</ETag></{COMPLETE}>");
    for (expected, body) in [
        (written("e-2"), result.clone()),
        (written("e-2"), declared.clone()),
        (written("e-2"), format!("{padding}\n{declared}")),
        (written("e-2"), declared.replace("<ETag>", &format!("{padding}<ETag>"))),
        (written("e"), format!("<s:{COMPLETE} xmlns:s=\"a\"><s:ETag>e</s:ETag></s:{COMPLETE}>")),
        (written("e>"), etag("<![CDATA[\"e>\"]]>")),
        (written("e"), etag("&#34;e&#x22;")),
        (written("a&b"), etag("a&amp;b")),
        (written("a&b"), etag("a&b")),
        (written("e"), format!("<{COMPLETE}><!-- a > b --><a b=\">\"/><ETag>e</ETag></{COMPLETE}>")),
        (NoEtag, format!("<{COMPLETE}/>")),
        (NoEtag, format!("<{COMPLETE}><a><ETag>e</ETag></a></{COMPLETE}>")),
        (NoEtag, etag("")),
        (NoEtag, etag("&unknown;e")),
        (NoEtag, etag("a<b>c</b>")),
        (NoEtag, etag(&"e".repeat(1000))),
        (Failed, format!("{padding}<Error><Code>InternalError</Code></Error>")),
        (Failed, "<?xml version=\"1.0\"?><Error><Code>InternalError</Code><ETag>e</ETag></Error>".to_owned()),
        (Failed, format!("<Error><{COMPLETE}><ETag>e</ETag></{COMPLETE}></Error>")),
        (Failed, format!("<!-- <{COMPLETE}> --><Error/>")),
        (Unrecognized, String::new()),
        (Unrecognized, padding.clone()),
        (Unrecognized, result[..result.len() - 1].to_owned()),
        (Unrecognized, "not XML".to_owned()),
        (Unrecognized, format!("</{COMPLETE}>")),
        (Unrecognized, format!("<{COMPLETE}><ETag>e</ETag></Other>")),
        (Unrecognized, etag(&"e".repeat(MAX_TOKEN + MAX_PIECE))),
        (Unrecognized, result.replace("<ETag>", &format!("<a b=\"{padding}\"/><ETag>"))),
        // Of another operation.
        (Unrecognized, "<CopyObjectResult><ETag>e</ETag></CopyObjectResult>".to_owned()),
    ] {
        for size in [1, 7, 4096, usize::MAX] {
            let (result, _, most) = read(COMPLETE, body.as_bytes(), size);
            let shown = &body.trim()[..body.trim().len().min(200)];
            assert_eq!(result, expected, "{size}: {shown}");
            assert!(most <= MAX_TOKEN, "{size}: {most} bytes in memory: {shown}");
        }
    }
}

#[test]
fn success_is_known_at_the_end_of_the_result() {
    let body = format!("<{COPY}><ETag>e</ETag></{COPY}>");
    let twice = format!("{body}{body}\n");
    for size in [1, 7] {
        let (result, at, _) = read(COPY, twice.as_bytes(), size);
        assert_eq!(result, written("e"));
        assert!((body.len()..body.len() + size).contains(&at), "{size}: {at}");
    }
}

/// Ceph RGW reports the progress of a copy in its result.
#[test]
fn a_result_of_any_length_is_read_in_bounded_memory() {
    let progress = "<Progress>123456789</Progress>\n".repeat(20_000);
    let copying = format!("<?xml version=\"1.0\"?>\n<{COPY} xmlns=\"a\">{progress}");
    for (expected, end) in [
        (written("e"), format!("<LastModified>a</LastModified><ETag>e</ETag></{COPY}>")),
        (NoEtag, format!("</{COPY}>")),
        (Failed, "<Error><Code>InternalError</Code></Error>".to_owned()),
        (Unrecognized, String::new()),
    ] {
        for size in [13, 1000, usize::MAX] {
            let body = format!("{copying}{end}");
            let (result, _, most) = read(COPY, body.as_bytes(), size);
            assert_eq!(result, expected, "{size}: {end}");
            assert!(most < 200, "{most} bytes in memory");
        }
    }
}

proptest! {
    #[test]
    fn the_result_does_not_depend_on_the_pieces(
        body in "[ -~]{0,200}",
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        markup in "([<>/&;\"]|ETag|CopyObjectResult|<!--|-->|<!\\[CDATA\\[|\\]\\]>| ){0,30}",
        size in 1..40usize,
    ) {
        for body in [body.as_bytes(), &bytes, markup.as_bytes()] {
            let (result, ..) = read(COPY, body, size);
            let (whole, ..) = read(COPY, body, usize::MAX);
            prop_assert_eq!(result, whole);
        }
    }
}
