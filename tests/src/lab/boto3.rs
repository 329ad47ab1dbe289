//! boto3 processes in namespaces. Each handles one request after the other, because a start takes longer than most requests.

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::MetadataExt as _,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};

use super::Namespace;

/// Idle processes, by what they have been started with.
#[derive(Clone, Debug, Default)]
pub(super) struct Boto3Pool(Arc<Mutex<HashMap<String, Vec<Boto3>>>>);

/// A process that reads a request per line, and writes a line for each. It ends when it is dropped.
#[derive(Debug)]
struct Boto3 {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Boto3Pool {
    /// Sends a request to an idle process for `user` in a namespace, or to a new one that `command` starts. Returns the answer.
    ///
    /// # Errors
    /// If the process cannot be started, or ends without an answer.
    pub(super) fn ask(
        &self,
        namespace: &Namespace,
        user: &str,
        command: impl Fn() -> Command,
        request: &str,
    ) -> Result<String> {
        let key = format!("{user} {}", state(namespace));
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&key).and_then(Vec::pop);
        // A namespace may have been removed with its processes since.
        let earlier = idle.and_then(|mut idle| Some((idle.ask(request).ok()?, idle)));
        let (answer, idle) = match earlier {
            Some(earlier) => earlier,
            None => {
                let mut new = Boto3::start(&mut command())?;
                (new.ask(request)?, new)
            }
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().push(idle);
        Ok(answer)
    }
}

/// Returns a text that differs if a namespace was made anew, or has other files in `/etc`, which a process does not notice.
fn state(namespace: &Namespace) -> String {
    let [path, etc] = namespace.traces();
    let stamp = |file: Metadata| format!("{}@{}.{}", file.ino(), file.mtime(), file.mtime_nsec());
    let namespace = fs::metadata(&path).map(|file| file.ino()).unwrap_or_default();
    let files = fs::read_dir(etc).into_iter().flatten().flatten();
    let mut files: Vec<String> = files.filter_map(|file| Some(stamp(file.metadata().ok()?))).collect();
    files.sort();
    format!("{} {namespace} {}", path.display(), files.join(" "))
}

impl Boto3 {
    fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("running {command:?}"))?;
        let requests = process.stdin.take().context("no input")?;
        let answers = BufReader::new(process.stdout.take().context("no output")?);
        Ok(Self { process, requests, answers })
    }

    fn ask(&mut self, request: &str) -> Result<String> {
        writeln!(self.requests, "{request}").context("writing to the client")?;
        let mut answer = String::new();
        let read = self.answers.read_line(&mut answer).context("reading from the client")?;
        anyhow::ensure!(read > 0, "the client ended; its error is above");
        Ok(answer)
    }
}

impl Drop for Boto3 {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
