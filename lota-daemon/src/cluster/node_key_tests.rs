use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;

/// Key of RFC 8410, and its public half.
const RFC: (&str, &str) = (
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n",
    "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=",
);
/// Key that OpenSSL 3.0 has made, and its public half.
const OPENSSL: (&str, &str) = (
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIF5PZTpFjb5B1DcNj9XjdEIQIrg7jZ9umEiyVlf/jYnP\n-----END PRIVATE KEY-----\n",
    "DyI0AaJkyq1lWsoVvyU8eJ7dz0HYIw0h+Lg5p2+uZrk=",
);
/// Key of the pair, computed in Python without a library for elliptic curves.
const PAIR: &str = "ed0589b0045b8f23945ba5a5ad18c68dfee06db2dcc99ea480c73a3b2f9d6ed3";
/// Points of low order, as far as they have one encoding each.
const LOW_ORDER: [&str; 8] = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
];

fn key(seed: [u8; 32]) -> NodeKey {
    NodeKey::of_seed(seed)
}

fn pair(one: &NodeKey, other: &NodeKey) -> String {
    hex::encode(one.pair_with(&other.public()).unwrap().bytes())
}

#[test]
fn keys_of_other_tools_are_read() {
    let [rfc, openssl] = [RFC, OPENSSL].map(|(pem, public)| {
        let key = NodeKey::parse(pem).unwrap();
        assert_eq!(key.public().to_string(), public);
        assert_eq!(public.parse(), Ok(key.public()));
        assert_eq!(*key.pem().unwrap(), pem, "others can read it");
        NodeKey::parse(&format!("\n{}\r\n\n", pem.trim().replace('\n', "\r\n"))).unwrap()
    });
    assert_eq!([pair(&rfc, &openssl), pair(&openssl, &rfc)], [PAIR; 2]);
}

#[test]
fn points_of_low_order_are_refused() {
    for point in LOW_ORDER {
        let bytes: [u8; 32] = hex::decode(point).unwrap().try_into().unwrap();
        let error = BASE64.encode(bytes).parse::<NodePublicKey>().unwrap_err();
        assert!(error.contains("it is of low order"), "{point}: {error}");
        // Nor would one be used that got past the parser.
        let past = NodePublicKey(VerifyingKey::from_bytes(&bytes).unwrap());
        assert!(key([7; 32]).pair_with(&past).is_none(), "{point}");
    }
}

#[test]
fn errors_say_what_is_wrong_and_show_no_key() {
    let secret = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp";
    let other = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VuBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----";
    for text in
        ["", "hunter2", secret, other, &RFC.0.replace("PRIVATE", "PUBLIC"), &RFC.0.replace("dVhC", "")]
    {
        let error = NodeKey::parse(text).unwrap_err();
        assert!(error.starts_with("not an Ed25519 key in PKCS#8 PEM: "), "{error}");
        assert!(!error.contains("hunter2") && !error.contains("MC4CAQ"), "{error}");
    }
    let beyond = BASE64.encode([2; 32]);
    for (text, hint) in [
        ("", "base64 of 32 bytes"),
        ("Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZu=", "base64 of 32 bytes"),
        ("Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE", "base64 of 32 bytes"),
        ("MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=", "base64 of 32 bytes"),
        (&beyond, "no private key has it"),
    ] {
        let error = text.parse::<NodePublicKey>().unwrap_err();
        assert!(error.contains(hint), "{text}: {error}");
    }
    let shown = format!("{:?} {:?}", key([7; 32]), key([7; 32]).pair_with(&key([8; 32]).public()));
    assert!(!shown.contains("7, 7") && shown.contains("PairKey(…)"), "{shown}");
}

#[test]
fn a_file_is_made_once_for_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node-key.pem");
    assert!(NodeKey::create_file(&path).unwrap());
    let made = fs::read_to_string(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!NodeKey::create_file(&path).unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), made, "it is not replaced");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    assert_eq!(NodeKey::read(&path).unwrap().pem().unwrap().as_str(), made);
    let error = NodeKey::create_file(&folder.path().join("none/key.pem")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn processes_at_the_same_time_make_one_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node-key.pem");
    let made = std::thread::scope(|scope| {
        let threads = [(); 8].map(|()| scope.spawn(|| NodeKey::create_file(&path).unwrap()));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(made.iter().filter(|made| **made).count(), 1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn both_nodes_of_a_pair_derive_one_key(one: [u8; 32], other: [u8; 32], third: [u8; 32]) {
        prop_assume!(one != other && other != third && third != one);
        let [one, other, third] = [one, other, third].map(key);
        prop_assert_eq!(pair(&one, &other), pair(&other, &one));
        prop_assert_ne!(pair(&one, &other), pair(&one, &third));
        prop_assert_ne!(pair(&one, &other), pair(&other, &third));
    }

    #[test]
    fn keys_are_read_as_they_are_written(seed: [u8; 32]) {
        let key = key(seed);
        let read = NodeKey::parse(&key.pem().unwrap()).unwrap();
        prop_assert_eq!(read.0.to_bytes(), seed);
        prop_assert_eq!(key.public().to_string().parse(), Ok(read.public()));
    }

    #[test]
    fn any_public_key_is_survived(text in ".*", bytes: [u8; 32]) {
        prop_assert!(text.parse::<NodePublicKey>().is_err());
        if let Ok(parsed) = BASE64.encode(bytes).parse::<NodePublicKey>() {
            prop_assert!(key([7; 32]).pair_with(&parsed).is_some());
            prop_assert_eq!(parsed.to_string(), BASE64.encode(bytes));
        }
    }

    #[test]
    fn any_file_is_survived(text in ".*", cut in 0_usize..118, byte in "[ -~\n]") {
        prop_assert!(NodeKey::parse(&text).is_err());
        let damaged = format!("{}{byte}{}", &RFC.0[..cut], &RFC.0[cut + 1..]);
        let _ = NodeKey::parse(&damaged);
        prop_assert!(NodeKey::parse(&RFC.0[..cut]).is_err());
    }
}
