//! What TLS asks: is the other side of this cluster? Both directions are the same question, and the
//! address that was dialled plays no part in the answer: a node is who its certificate says it is.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::certificate::{Certificate, CertificateError};
use super::revoked::Revocations;

/// Why a certificate that the authority signed is not believed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NotBelieved {
    #[error("the certificate names nobody")]
    Nobody(#[source] CertificateError),
    #[error("the certificate is of cluster {theirs}, this is {ours}")]
    OtherCluster { theirs: String, ours: String },
}

/// Decides about certificates; immutable, made anew with each reload.
#[derive(Clone, Debug)]
pub(super) struct Verifier {
    cluster: String,
    roots: Arc<RootCertStore>,
    revocations: Arc<Revocations>,
    clients: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    /// Who dials must show a certificate.
    demands_one: bool,
}

impl Verifier {
    pub(super) fn new(
        cluster: &str,
        roots: Arc<RootCertStore>,
        revocations: Arc<Revocations>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::server::VerifierBuilderError> {
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build()?;
        Ok(Self { cluster: cluster.to_owned(), roots, revocations, clients, provider, demands_one: true })
    }

    /// The same for who may come without a certificate. One that is shown must be good all the same.
    pub(super) fn letting_in_nobodies(&self) -> Self {
        Self { demands_one: false, ..self.clone() }
    }

    /// Whether the authority signed this for a server, and it is in its time.
    pub(super) fn signed(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )
    }

    /// What the authority's signature does not say.
    fn believed(&self, end_entity: &CertificateDer<'_>) -> Result<(), Error> {
        let other = |why| Error::InvalidCertificate(TlsCertificateError::Other(OtherError(Arc::new(why))));
        let certificate = Certificate::read(end_entity).map_err(|error| other(NotBelieved::Nobody(error)))?;
        let identity = certificate.identity().map_err(|error| other(NotBelieved::Nobody(error)))?;
        if identity.cluster != self.cluster {
            return Err(other(NotBelieved::OtherCluster {
                theirs: identity.cluster.clone(),
                ours: self.cluster.clone(),
            }));
        }
        if self.revocations.contains(&certificate) {
            return Err(Error::InvalidCertificate(TlsCertificateError::Revoked));
        }
        Ok(())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.signed(end_entity, intermediates, now)?;
        self.believed(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.clients.verify_client_cert(end_entity, intermediates, now)?;
        self.believed(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.demands_one
    }
}

/// Both sides of TLS for one protocol: 1.3 only, both certificates required unless tokens are taken, nothing resumed,
/// nothing sent early.
#[derive(Clone, Debug)]
pub struct TlsConfigs {
    /// `None`: without a certificate nobody is served.
    pub server: Option<Arc<ServerConfig>>,
    pub client: Arc<ClientConfig>,
}

impl TlsConfigs {
    pub(super) fn new(
        verifier: &Arc<Verifier>,
        key: Option<&Arc<CertifiedKey>>,
        protocol: &[u8],
    ) -> Result<Self, Error> {
        let provider = Arc::clone(&verifier.provider);
        let own = key.map(|key| Arc::new(SingleCertAndKey::from(Arc::clone(key))));
        let server = match &own {
            None => None,
            Some(own) => {
                let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
                    .with_protocol_versions(&[&rustls::version::TLS13])?
                    .with_client_cert_verifier(Arc::clone(verifier) as Arc<dyn ClientCertVerifier>)
                    .with_cert_resolver(Arc::clone(own) as Arc<dyn ResolvesServerCert>);
                server.alpn_protocols = vec![protocol.to_vec()];
                server.max_early_data_size = 0;
                server.send_tls13_tickets = 0;
                server.session_storage = Arc::new(NoServerSessionStorage {});
                Some(Arc::new(server))
            }
        };
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(verifier) as Arc<dyn ServerCertVerifier>);
        let mut client = match own {
            Some(own) => client.with_client_cert_resolver(own),
            None => client.with_no_client_auth(),
        };
        client.alpn_protocols = vec![protocol.to_vec()];
        client.enable_early_data = false;
        client.resumption = Resumption::disabled();
        // Names prove nothing here, and need not be told to whoever listens.
        client.enable_sni = false;
        Ok(Self { server, client: Arc::new(client) })
    }
}
