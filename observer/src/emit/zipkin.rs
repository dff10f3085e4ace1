//! Delivery to Zipkin: JSON over HTTP/1.1.

use std::time::Duration;

use reqwest::Url;

use super::{
    Accepted, Batch, Failure, Sending, Transport,
    http::{Access, Receiver, ReceiverError},
    options::Compression,
};

/// A receiver of Zipkin's spans.
#[derive(Debug)]
pub struct Zipkin {
    receiver: Receiver,
    compression: Compression,
}

impl Zipkin {
    /// Creates a transport to `url`.
    ///
    /// # Errors
    /// The client cannot be created, or the credentials cannot be read.
    pub fn new(url: Url, access: Access, compression: Compression, timeout: Duration) -> Result<Self, ReceiverError> {
        Ok(Self { receiver: Receiver::new(url, access, false, timeout)?, compression })
    }

    async fn post(&self, batch: &Batch) -> Result<Accepted, Failure> {
        let response = self.receiver.post_as("application/json", &batch.body, self.compression).await?;
        self.receiver.accepted(response, |body| String::from_utf8_lossy(body).into_owned()).await?;
        Ok(Accepted::default())
    }
}

impl Transport for Zipkin {
    fn send<'a>(&'a mut self, batch: &'a Batch) -> Sending<'a> {
        Box::pin(self.post(batch))
    }
}
