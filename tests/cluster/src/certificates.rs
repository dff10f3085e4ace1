//! The cluster's certificate authority, certificates and kubeconfigs.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::node::{NODES, SERVER, SERVICE_ADDRESS, address, node_name};

/// Whose they are: name of the files, organization (the group), common name (the user).
const CLIENTS: [(&str, &str, &str); 4] = [
    ("admin", "system:masters", "admin"),
    ("apiserver-kubelet", "system:masters", "apiserver-kubelet"),
    ("controllers", "", "system:kube-controller-manager"),
    ("scheduler", "", "system:kube-scheduler"),
];

/// Files of a directory.
pub(crate) struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    /// Makes everything anew in `directory`.
    pub(crate) fn create(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        let certificates = Self { directory };
        let authority = certificates.authority()?;
        let names =
            ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
        let addresses = [SERVICE_ADDRESS.to_owned(), address(1), "127.0.0.1".to_owned()];
        let names = names.into_iter().map(str::to_owned).chain(addresses).collect::<Vec<_>>();
        certificates.issue(&authority, "apiserver", ("", "kube-apiserver"), &names)?;
        for (name, group, user) in CLIENTS {
            certificates.issue(&authority, name, (group, user), &[])?;
        }
        for node in NODES {
            let name = node_name(node);
            let user = format!("system:node:{name}");
            certificates.issue(&authority, &name, ("system:nodes", &user), &[name.clone(), address(node)])?;
        }
        let key = KeyPair::generate().context("key of service accounts")?;
        certificates.write("accounts.key", &key.serialize_pem())?;
        certificates.write("accounts.pub", &key.public_key_pem())?;
        Ok(certificates)
    }

    /// Returns the path of a file: `NAME.crt`, `NAME.key` or `NAME.kubeconfig`.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    fn authority(&self) -> Result<Issuer<'static, KeyPair>> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = name("", "cluster");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("authority's key")?;
        self.write("ca.crt", &parameters.self_signed(&key).context("authority's certificate")?.pem())?;
        Ok(Issuer::new(parameters, key))
    }

    fn issue(
        &self,
        authority: &Issuer<'static, KeyPair>,
        file: &str,
        (group, user): (&str, &str),
        subjects: &[String],
    ) -> Result<()> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = name(group, user);
        for subject in subjects {
            parameters.subject_alt_names.push(match subject.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(subject.as_str().try_into().context("host name")?),
            });
        }
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().context("key")?;
        self.write(&format!("{file}.crt"), &parameters.signed_by(&key, authority).context("certificate")?.pem())?;
        self.write(&format!("{file}.key"), &key.serialize_pem())?;
        self.write(&format!("{file}.kubeconfig"), &self.kubeconfig(file))
    }

    fn kubeconfig(&self, user: &str) -> String {
        let directory = self.directory.display();
        format!(
            r#"apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{SERVER}", certificate-authority: "{directory}/ca.crt"}}}}]
users: [{{name: u, user: {{client-certificate: "{directory}/{user}.crt", client-key: "{directory}/{user}.key"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
"#
        )
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path(file);
        fs::write(&path, text).with_context(|| format!("{}: cannot write", path.display()))
    }
}

/// Returns the directory of certificates below the cluster's.
pub(crate) fn directory(cluster: &Path) -> PathBuf {
    cluster.join("certificates")
}

fn name(organization: &str, common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if !organization.is_empty() {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common);
    name
}
