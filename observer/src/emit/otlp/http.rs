//! OTLP over HTTP/1.1: protocol buffers to `/v1/metrics` or `/v1/traces`.

use std::time::Duration;

use observer_model::encode::otlp::answer::status_message;
use reqwest::Url;

use super::accepted;
use crate::emit::{
    Accepted, Batch, Failure, Sending, Transport,
    http::{Access, Receiver, ReceiverError, body},
    options::Compression,
};

/// A receiver of OTLP over HTTP.
#[derive(Debug)]
pub struct OtlpHttp {
    receiver: Receiver,
    compression: Compression,
}

impl OtlpHttp {
    /// Creates a transport to `url`.
    ///
    /// # Errors
    /// The client cannot be created, or the credentials cannot be read.
    pub fn new(url: Url, access: Access, compression: Compression, timeout: Duration) -> Result<Self, ReceiverError> {
        Ok(Self { receiver: Receiver::new(url, access, false, timeout)?, compression })
    }

    async fn post(&self, batch: &Batch) -> Result<Accepted, Failure> {
        let response = self.receiver.post_as("application/x-protobuf", &batch.body, self.compression).await?;
        let response = self.receiver.accepted(response, reason).await?;
        Ok(accepted(&body(response).await))
    }
}

impl Transport for OtlpHttp {
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a> {
        Box::pin(self.post(batch))
    }
}

/// Returns the reason of an error: a `google.rpc.Status`, or a text of whatever is between.
fn reason(body: &[u8]) -> String {
    status_message(body).unwrap_or_else(|| String::from_utf8_lossy(body).into_owned())
}
