//! Calls between nodes that show certificates to each other.

#![allow(clippy::unwrap_used)] // Helpers too: clippy knows only test functions as tests.

mod common;

use common::{
    Table,
    node::{Node, Tls, signal, start_cluster_with},
    wait_for,
};
use rcgen::{CertificateParams, Issuer, KeyPair};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig};

const NAME: &str = "perdure";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = Certificate::from_pem(params.self_signed(&key).unwrap().pem());
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A certificate that names the role.
    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity::from_pem(certificate.pem(), key.serialize_pem())
    }

    /// Of a node that trusts this authority, and shows that identity.
    fn tls(&self, identity: &Identity) -> Tls {
        let server = ServerTlsConfig::new().identity(identity.clone()).client_ca_root(self.certificate.clone());
        let client = ClientTlsConfig::new().ca_certificate(self.certificate.clone()).domain_name(NAME);
        (server, client.identity(identity.clone()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_certificates_of_one_authority_call_each_other() {
    let authority = Authority::new();
    let tls = || Some(authority.tls(&authority.identity(NAME)));
    let nodes = start_cluster_with(&Table::default(), vec![tls(), tls()]).await;
    for i in 0..20 {
        for node in &nodes {
            node.cluster.workflow(&signal(&format!("w{i}"))).await.unwrap();
        }
    }
    assert!(nodes.iter().all(|node| !node.shards.calls().is_empty()), "both own some");

    // Others do not get in: without TLS, without a certificate, with one of somebody else.
    let address = nodes[0].membership.config().advertise;
    let stranger = Authority::new().identity(NAME);
    let trusting = || ClientTlsConfig::new().ca_certificate(authority.certificate.clone()).domain_name(NAME);
    let endpoint = |scheme: &str| Endpoint::from_shared(format!("{scheme}://{address}")).unwrap();
    let attempts = [
        endpoint("http"),
        endpoint("https").tls_config(trusting()).unwrap(),
        endpoint("https").tls_config(trusting().identity(stranger)).unwrap(),
    ];
    for attempt in attempts {
        use perdure_proto::perdure::node::v1::{CallFrames, node_client::NodeClient};
        // A refusal may come after the handshake, as the end of the connection.
        let answer = match attempt.connect().await {
            Ok(channel) => NodeClient::new(channel).calls(futures::stream::iter([CallFrames::default()])).await,
            Err(_) => continue,
        };
        let status = answer.expect_err("no answer");
        assert_ne!(status.code(), tonic::Code::InvalidArgument, "its greeting was looked at");
    }
}

/// A node of another authority, and one whose certificate names something else, are heard and not called.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_wrong_certificate_gets_no_place() {
    let authority = Authority::new();
    let tls = || Some(authority.tls(&authority.identity(NAME)));
    let table = Table::default();
    let nodes = start_cluster_with(&table, vec![tls(), tls()]).await;
    let other = Authority::new();
    for wrong in [other.tls(&other.identity(NAME)), authority.tls(&authority.identity("another"))] {
        let node = Node::start(&table, Some(wrong)).await;
        let is_away = |by: &Node| {
            let placement = by.membership.placement();
            placement.borrow().members.get(node.membership.me()).is_some_and(|member| member.unreachable)
        };
        wait_for("it to be left out", || nodes.iter().all(is_away)).await;
        node.crash().await;
    }
}
