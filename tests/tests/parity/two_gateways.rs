//! Two gateways at once, with the same buckets and keys, other objects and other users.

use std::{collections::BTreeMap, net::TcpListener, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use lota_tests::{
    gateway::{Gateway, Permission, Settings},
    lab::{
        ADMIN, GATEWAY, Mode, NOBODY, READER, VIP,
        raw::{Reply, Request, Signing, content},
    },
    tour::{Tour, wait_until},
};
use tokio::runtime::Runtime;

use super::{
    compare, fail_on_differences,
    reads::{NamedGateway, fills_have_ended, is_possible_hit, prepare},
    table::{Row, rows},
};

/// Name of the second gateway.
const SECOND: &str = "s3.second.test";
const BUCKET: &str = "parity-both";
/// Size of the objects, in bytes.
const SIZE: usize = 4096;
/// Number of times that the requests are repeated until all that can be are hits.
const ROUNDS: usize = 40;
const BETWEEN_ROUNDS: Duration = Duration::from_millis(250);

pub(crate) fn at_once(tour: &mut Tour) -> Result<()> {
    let runtime = Runtime::new()?;
    let (_serving, second) = start_second(tour, &runtime)?;
    let endpoint = format!("http://{}", second.address);
    tour.restart_each(|node| {
        let credential = node.config().with_file_name("credential.toml");
        let section = format!(
            "[gateways.second]\nendpoint = \"{endpoint}\"\nnames = [\"{SECOND}\"]\n\n[backends.second]\nendpoints = \
             [\"{endpoint}\"]\ncredential_file = \"{}\"\n\n[cache]",
            credential.display()
        );
        node.edit("[cache]", &section);
        let configured = node.configure(Mode::OwnCredential);
        node.forget_edits();
        configured
    })?;

    let gateways = [NamedGateway::first(), second];
    let mut rows = rows();
    rows.retain(|row| row.size == SIZE);
    let keys: Vec<String> = (0..rows.len()).map(|row| format!("row-{row}")).collect();
    let [first, second] = gateways.each_ref().map(|gateway| -> Result<_> {
        let bucket = Request::new(Method::PUT, gateway.name, &format!("/{BUCKET}"));
        tour.lab.switch().send_all(gateway.address, vec![bucket.sign(&ADMIN, Signing::Header)?])?;
        let requests = prepare(tour, gateway, BUCKET, &rows, &keys)?;
        let expected = tour.lab.switch().send_all(gateway.address, requests.clone())?;
        Ok((requests, expected))
    });
    let (first, second) = (first?, second?);
    // The same key at both gateways, one right after the other, on one connection.
    let requests = in_turn(&first.0, &second.0);
    let expected = in_turn(&first.1, &second.1);
    let names: Vec<String> = rows
        .iter()
        .flat_map(|row| gateways.iter().map(|gateway| format!("{}: {}", gateway.name, row.name())))
        .collect();
    let both: Vec<&Row> = rows.iter().flat_map(|row| [row, row]).collect();

    let mut differences = BTreeMap::new();
    let cold = tour.pod(1, 1).send_all((VIP, 80).into(), requests.clone())?;
    compare(&names, ("its gateway", &expected), ("cold", &cold), &mut differences)?;
    wait_until("the fills to end", || fills_have_ended(tour))?;
    for (node, pod) in tour.one_pod_per_node() {
        let way = format!("warm at n{node}");
        let mut missed = Vec::new();
        for _ in 0..ROUNDS {
            let warm = pod.send_all((VIP, 80).into(), requests.clone())?;
            compare(&names, ("its gateway", &expected), (&way, &warm), &mut differences)?;
            missed = misses(&both, &names, &warm);
            if missed.is_empty() {
                break;
            }
            thread::sleep(BETWEEN_ROUNDS);
        }
        ensure!(missed.is_empty(), "{way}: {} reads are no hits: {:?}", missed.len(), missed.first());
    }
    fail_on_differences(&differences)?;
    tour.restart(Mode::OwnCredential)
}

/// Starts the second gateway, where [`NOBODY`] may read and has another content.
fn start_second(tour: &Tour, runtime: &Runtime) -> Result<(Gateway, NamedGateway)> {
    let listener = tour.lab.switch().run(|| TcpListener::bind((GATEWAY, 0)))??;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let settings = Settings {
        zone: SECOND.into(),
        users: vec![
            ADMIN.user(Permission::Everything),
            READER.user(Permission::ReadOnly),
            NOBODY.user(Permission::ReadOnly),
        ],
        direct: None,
        data_dir: tour.lab.folder().join("second-objects"),
    };
    let serving = runtime
        .block_on(async { Gateway::serve(tokio::net::TcpListener::from_std(listener)?, settings).await });
    Ok((serving.context("the second gateway")?, NamedGateway { name: SECOND, address, content: inverted }))
}

fn inverted(size: usize) -> Vec<u8> {
    content(size).into_iter().map(|byte| !byte).collect()
}

fn in_turn<T: Clone>(first: &[T], second: &[T]) -> Vec<T> {
    first.iter().zip(second).flat_map(|(first, second)| [first.clone(), second.clone()]).collect()
}

/// Returns the reads that are no hits, although they could be.
fn misses<'a>(rows: &[&Row], names: &'a [String], replies: &[Reply]) -> Vec<&'a str> {
    rows.iter()
        .zip(names)
        .zip(replies)
        .filter(|((row, _), reply)| is_possible_hit(row, reply) && reply.cache() != "hit")
        .map(|((_, name), _)| name.as_str())
        .collect()
}
