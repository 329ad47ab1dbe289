use hyper::HeaderMap;

use super::*;
use crate::testing::answer;

fn fetches() -> (WriteFetches, Arc<S3Store>) {
    (WriteFetches::new(AfterWrite::Fetch, 1 << 30), Arc::new(S3Store::for_test()))
}

fn pod(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn etag(text: &str) -> NormalEtag {
    NormalEtag::parse(text).unwrap()
}

fn name(key: u64) -> ObjectName {
    ObjectName::from_parts("http://gateway", "b", &key.to_string(), None).unwrap()
}

fn object(key: u64, of: &str) -> WrittenObject {
    WrittenObject { name: name(key), etag: NormalEtag::parse(of) }
}

#[test]
fn an_object_waits_once_and_no_pod_fills_the_queue() {
    let (fetches, store) = fetches();
    let enqueue = |key, number| fetches.enqueue(&store, object(key, "e"), pod(number));
    enqueue(0, 1).unwrap();
    assert_eq!(enqueue(0, 2), Err(WriteFetch::Merged));
    let more = (1..MAX_WAITING).take_while(|key| enqueue(*key, 1).is_ok()).count();
    assert_eq!(more as u64 + 1, MAX_WAITING / 2, "one pod");
    assert_eq!(enqueue(MAX_WAITING, 1), Err(WriteFetch::QueueFull));
    enqueue(MAX_WAITING, 2).unwrap();
    assert_eq!(enqueue(0, 1), Err(WriteFetch::Merged), "needs no place");
    let (due, _turn) = fetches.next().unwrap();
    assert_eq!((due.name, due.pod), (name(0), pod(1)));
    enqueue(0, 1).unwrap();
}

#[test]
fn a_pod_with_many_writes_leaves_turns_to_others() {
    let (fetches, store) = fetches();
    for key in 0..100 {
        fetches.enqueue(&store, object(key, "e"), pod(1)).unwrap();
    }
    let started = || fetches.next().map(|(due, turn)| (due.pod, turn));
    let mut running: Vec<_> = std::iter::from_fn(started).collect();
    assert_eq!(running.len() as u64, MAX_FETCHES / 2, "one pod alone");
    for key in 100..300 {
        let number = 2 + u8::from(key >= 200);
        fetches.enqueue(&store, object(key, "e"), pod(number)).unwrap();
    }
    let next: Vec<_> = (0..2).map(|_| started().unwrap()).collect();
    assert!(next.iter().map(|(of, _)| *of).eq([pod(2), pod(3)]), "after 100 objects of another pod");
    running.extend(next);
    // As turns end, the pods share them.
    let mut ended = HashMap::<IpAddr, u32>::new();
    for _ in 0..120 {
        let (of, turn) = running.remove(0);
        drop(turn);
        *ended.entry(of).or_default() += 1;
        running.extend(std::iter::from_fn(started));
    }
    assert!([1, 2, 3].iter().all(|number| ended[&pod(*number)] >= 30), "{ended:?}");
}

#[test]
fn only_what_was_written_is_fetched() {
    let (fetches, store) = fetches();
    fetches.enqueue(&store, object(0, "\"A\""), pod(1)).unwrap();
    for version in ["b", "c", "b", "a"] {
        assert_eq!(fetches.enqueue(&store, object(0, version), pod(1)), Err(WriteFetch::Merged));
    }
    let (due, _turn) = fetches.next().unwrap();
    assert_eq!(due.versions.etags, ["a", "b", "c"].map(etag), "nodes may report writes in another order");
    for (is_cached, of) in [(true, "\"a\""), (true, "\"C\""), (false, "\"d\""), (false, "\"a-1\"")] {
        let just_now = Some(Duration::ZERO);
        assert_eq!(due.versions.contain(&meta(of), just_now, Instant::now()), is_cached, "{of}");
    }
    for version in 0..100 {
        let _ = fetches.enqueue(&store, object(0, &version.to_string()), pod(1));
    }
    assert_eq!(fetches.next().unwrap().0.versions.etags.len(), MAX_ETAGS);
}

fn meta(etag: &str) -> ObjectMeta {
    let (status, headers) = answer(200, &[("etag", etag), ("content-length", "9")]);
    ObjectMeta::of_answer(&name(0), &HeaderMap::new(), status, &headers).unwrap()
}

#[test]
fn without_an_etag_only_a_new_object_is_fetched() {
    let (mut versions, now) = (WrittenVersions::default(), Instant::now());
    versions.add(None, now);
    versions.add(None, now + Duration::from_secs(5));
    let is_fetched = |age: Option<u64>, after| {
        let (age, now) = (age.map(Duration::from_secs), now + Duration::from_secs(after));
        versions.contain(&meta("\"e\""), age, now)
    };
    assert!(is_fetched(Some(0), 0) && is_fetched(Some(60), 0) && is_fetched(Some(100), 40));
    assert!(!is_fetched(Some(61), 0) && !is_fetched(Some(101), 40) && !is_fetched(None, 0));
}
