//! The answer that a request asks for: the application reads it from the request, and the client checks it.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::Collected;
use hyper::{
    HeaderMap, Request, Response,
    body::{Body, Frame, SizeHint},
    header::{CONTENT_TYPE, HeaderValue},
    http::{request, response},
};

const UPLOADED: &str = "uploaded";
const CHURN: &str = "churn";
const CHURN_ANSWER: &str = "churn-answer";
const GRPC_STATUS: &str = "grpc-status";
/// In trailers, of either direction.
const SUM: &str = "x-sum";

/// A request and its answer.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    /// Status of the answer.
    pub(super) status: u16,
    /// Length of the request's body.
    pub(super) upload: usize,
    /// Length of the answer's body.
    pub(super) download: usize,
    /// Both ends send trailers.
    pub(super) trailers: bool,
    /// Of the request, and of the answer.
    pub(super) content_type: &'static str,
    /// gRPC status of the answer: in its trailers, or in its headers if it has no body.
    pub(super) grpc_status: Option<u16>,
    /// The value comes back in the answer.
    pub(super) churn: Option<String>,
}

impl Exchange {
    /// Returns a bare answer of this status.
    pub(super) fn of(status: u16) -> Self {
        let content_type = "text/plain";
        Self { status, upload: 0, download: 0, trailers: false, content_type, grpc_status: None, churn: None }
    }

    /// Returns the request.
    pub(super) fn request(&self, authority: &str) -> Result<Request<Zeros>> {
        let Self { status, download, trailers, grpc_status, .. } = self;
        let grpc_status = grpc_status.map_or_else(|| "-".to_owned(), |status| status.to_string());
        let mut request = Request::post(format!("http://{authority}/{status}/{download}/{trailers}/{grpc_status}"))
            .header(CONTENT_TYPE, self.content_type);
        if let Some(churn) = &self.churn {
            request = request.header(CHURN, churn);
        }
        Ok(request.body(Zeros::new(self.upload, self.trailers.then(|| sum(self.upload))))?)
    }

    /// Returns the application's answer to such a request.
    pub(super) fn answer(request: &request::Parts, body: Collected<Bytes>) -> Result<Response<Zeros>> {
        let words: Vec<&str> = request.uri.path().split('/').collect();
        let [_, status, download, trailers, grpc_status] = words[..] else {
            anyhow::bail!("{} asks for nothing", request.uri)
        };
        let (download, trailing): (usize, bool) = (download.parse()?, trailers.parse()?);
        ensure!(!trailing || body.trailers().is_some_and(|found| found.contains_key(SUM)), "no trailers came");
        let uploaded = body.to_bytes().len();
        let content_type = request.headers.get(CONTENT_TYPE).context("no content type came")?;
        let mut response =
            Response::builder().status(status).header(CONTENT_TYPE, content_type).header(UPLOADED, uploaded);
        if let Some(churn) = request.headers.get(CHURN) {
            response = response.header(CHURN_ANSWER, churn);
        }
        let mut trailers = trailing.then(|| sum(download));
        if grpc_status != "-" {
            if download == 0 {
                response = response.header(GRPC_STATUS, grpc_status);
            } else {
                trailers.get_or_insert_default().insert(GRPC_STATUS, HeaderValue::from_str(grpc_status)?);
            }
        }
        Ok(response.body(Zeros::new(download, trailers))?)
    }

    /// Fails unless that is the answer.
    pub(super) fn is_answered_by(&self, answer: &response::Parts, body: Collected<Bytes>) -> Result<()> {
        let header = |name: &str| answer.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        ensure!(answer.status.as_u16() == self.status, "{self:?} is answered by {answer:?}");
        ensure!(header(UPLOADED) == Some(&self.upload.to_string()), "{self:?} is answered by {answer:?}");
        ensure!(header(CHURN_ANSWER) == self.churn.as_deref(), "{self:?} is answered by {answer:?}");
        let trailers = body.trailers().cloned().unwrap_or_default();
        ensure!(trailers.contains_key(SUM) == self.trailers, "{self:?} has the trailers {trailers:?}");
        let grpc_status = answer.headers.get(GRPC_STATUS).or_else(|| trailers.get(GRPC_STATUS));
        let expected = self.grpc_status.map(HeaderValue::from);
        ensure!(grpc_status == expected.as_ref(), "{self:?} has the gRPC status {grpc_status:?}");
        let length = body.to_bytes().len();
        ensure!(length == self.download, "{self:?} is answered by {length} bytes");
        Ok(())
    }
}

fn sum(length: usize) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(SUM, HeaderValue::from(length));
    trailers
}

/// A body of zeros, which are also messages of gRPC without content, five bytes each.
#[derive(Debug)]
pub(super) struct Zeros {
    left: usize,
    trailers: Option<HeaderMap>,
}

impl Zeros {
    fn new(length: usize, trailers: Option<HeaderMap>) -> Self {
        Self { left: length, trailers }
    }
}

impl Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static PART: [u8; 1 << 16] = [0; 1 << 16];
        Poll::Ready(if self.left > 0 {
            let part = &PART[..self.left.min(PART.len())];
            self.left -= part.len();
            Some(Ok(Frame::data(Bytes::from_static(part))))
        } else {
            self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}
