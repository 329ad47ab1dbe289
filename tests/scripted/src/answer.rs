//! Answers of the server, as a sequence of steps.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

/// One action of the server on a connection.
#[derive(Clone, Debug)]
pub enum Step {
    /// Writes these bytes.
    Send(Vec<u8>),
    /// Waits for this time.
    Delay(Duration),
    /// Waits until the test notifies it; preferable to a fixed delay.
    WaitFor(Arc<Notify>),
    /// Closes the connection with FIN.
    Close,
    /// Closes the connection with RST.
    Reset,
    /// Keeps the connection open and writes nothing more.
    Silence,
}

/// The answer to one request. The server adds no headers: `Content-Length` is set only by [`Answer::body`] and
/// [`Answer::declared_length`]; [`Answer::status`] declares 0 if the status allows a body.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    before: Vec<Step>,
    head: Option<(u16, Vec<(String, String)>)>,
    body: Vec<u8>,
    length: Option<u64>,
    truncated: Option<usize>,
    after: Vec<Step>,
}

impl Answer {
    /// Creates an answer of this status without headers or body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        let length = (status != 304 && status != 204 && status >= 200).then_some(0);
        Self { head: Some((status, Vec::new())), length, ..Self::default() }
    }

    /// Creates an answer of exactly these bytes.
    #[must_use]
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { before: vec![Step::Send(bytes.into())], ..Self::default() }
    }

    /// Creates an answer that sends nothing and keeps the connection open.
    #[must_use]
    pub fn silence() -> Self {
        Self { before: vec![Step::Silence], ..Self::default() }
    }

    /// Creates an S3 error with its XML body.
    #[must_use]
    pub fn s3_error(status: u16, code: &str) -> Self {
        let body =
            format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>");
        Self::status(status).header("content-type", "application/xml").body(body)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Some((_, headers)) = &mut self.head {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Removes a header.
    #[must_use]
    pub fn without_header(mut self, name: &str) -> Self {
        if let Some((_, headers)) = &mut self.head {
            headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        }
        self
    }

    /// Sets the body and declares its length. The answer to HEAD declares the length but sends no body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.length = Some(self.body.len() as u64);
        self
    }

    /// Declares another length than the body has.
    #[must_use]
    pub fn declared_length(mut self, length: u64) -> Self {
        self.length = Some(length);
        self
    }

    /// Declares no length, so that the body ends with the connection.
    #[must_use]
    pub fn without_length(mut self) -> Self {
        self.length = None;
        self
    }

    /// Sends only the first `bytes` bytes of the body; usually followed by [`Answer::close`].
    #[must_use]
    pub fn truncate(mut self, bytes: usize) -> Self {
        self.truncated = Some(bytes);
        self
    }

    /// Waits before the first byte.
    #[must_use]
    pub fn delay(mut self, time: Duration) -> Self {
        self.before.push(Step::Delay(time));
        self
    }

    /// Waits for a notification of the test before the first byte.
    #[must_use]
    pub fn wait_for(mut self, notify: &Arc<Notify>) -> Self {
        self.before.push(Step::WaitFor(notify.clone()));
        self
    }

    /// Sends further bytes at the end after a delay, even after a head without a body.
    #[must_use]
    pub fn extra(self, delay: Duration, bytes: impl Into<Vec<u8>>) -> Self {
        self.then(Step::Delay(delay)).then(Step::Send(bytes.into()))
    }

    /// Closes the connection at the end.
    #[must_use]
    pub fn close(self) -> Self {
        self.then(Step::Close)
    }

    /// Resets the connection at the end.
    #[must_use]
    pub fn reset(self) -> Self {
        self.then(Step::Reset)
    }

    /// Adds a step at the end.
    #[must_use]
    pub fn then(mut self, step: Step) -> Self {
        self.after.push(step);
        self
    }

    /// Returns the status; 0 for raw answers.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.head.as_ref().map_or(0, |(status, _)| *status)
    }

    /// Returns the value of a header.
    #[must_use]
    pub fn header_value(&self, name: &str) -> Option<String> {
        let (_, headers) = self.head.as_ref()?;
        headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
    }

    /// Returns the number of bytes of the body.
    #[must_use]
    pub fn body_length(&self) -> usize {
        self.body.len()
    }

    pub(crate) fn into_steps(self, is_head: bool) -> Vec<Step> {
        let mut steps = self.before;
        if let Some((status, headers)) = self.head {
            let mut bytes = format!("HTTP/1.1 {status} Scripted\r\n").into_bytes();
            for (name, value) in headers {
                bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
            }
            if let Some(length) = self.length {
                bytes.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
            }
            bytes.extend_from_slice(b"\r\n");
            if !is_head {
                let sent = self.truncated.unwrap_or(self.body.len()).min(self.body.len());
                bytes.extend_from_slice(&self.body[..sent]);
            }
            steps.push(Step::Send(bytes));
        }
        steps.extend(self.after);
        steps
    }
}
