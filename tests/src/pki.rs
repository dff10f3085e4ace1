//! The mesh's certificate authority: SPIFFE identities as istiod issues them.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Trust domain of every identity.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// A self-signed authority.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
pub struct Identity {
    /// The leaf certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// Makes a new one.
    pub fn new() -> Result<Self> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = name(TRUST_DOMAIN);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("authority's key")?;
        let certificate = parameters.self_signed(&key).context("authority's certificate")?.pem();
        Ok(Self { certificate, issuer: Issuer::new(parameters, key) })
    }

    /// Returns its own certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Returns a workload's identity, `spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn workload(&self, spiffe: &str) -> Result<Identity> {
        self.issue(SanType::URI(spiffe.try_into().context("SPIFFE id")?))
    }

    /// Returns a server's identity for clients outside the mesh.
    pub fn server(&self, host: &str) -> Result<Identity> {
        self.issue(SanType::DnsName(host.try_into().context("host name")?))
    }

    fn issue(&self, subject: SanType) -> Result<Identity> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.subject_alt_names = vec![subject];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().context("key")?;
        let certificate = parameters.signed_by(&key, &self.issuer).context("certificate")?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}

/// Returns the SPIFFE id of a service account.
pub fn spiffe(namespace: &str, account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}")
}

fn name(organization: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, organization);
    name
}
