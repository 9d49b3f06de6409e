//! Temporal's API (`temporal::api`), and Perdure's own messages (`perdure`): durable state, log records, node-to-node
//! calls. All of it is generated at build; see `build.rs` for where it comes from.
//!
//! Payload bytes are [`bytes::Bytes`], so that decoding a request does not copy them.

#[allow(clippy::all, clippy::unwrap_used, dead_code, rustdoc::all, missing_docs)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/all.rs"));
}

pub mod build_ids;
mod codec;
mod error;
mod history;
pub mod links;
pub mod nexus_token;
pub mod versions;

pub use error::{Code, Error};
pub use generated::{google, perdure, temporal};

/// The compiled descriptors of Temporal's API, for gRPC reflection and for tables made from the API.
pub const TEMPORAL_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/temporal_descriptors.bin"));
