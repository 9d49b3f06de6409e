//! Calls with bytes for messages.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

/// Ends long polls.
const TIMEOUT: Duration = Duration::from_millis(200);

pub struct Wire(Grpc<Channel>);

impl Wire {
    pub async fn connect(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self(Grpc::new(endpoint.connect().await.unwrap()))
    }

    pub async fn call(&mut self, path: &str, message: Bytes) -> Result<Bytes, Status> {
        self.0.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let mut request = Request::new(message);
        request.set_timeout(TIMEOUT);
        let path = PathAndQuery::try_from(path).unwrap();
        Ok(self.0.unary(request, path, Raw).await?.into_inner())
    }
}

#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
