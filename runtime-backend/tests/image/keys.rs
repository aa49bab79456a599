//! Certificates and signatures of the tests' own, by openssl.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An authority, and a certificate of its for 127.0.0.1.
pub(crate) struct Keys {
    pub(crate) authority: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Keys {
    pub(crate) fn make(directory: &Path) -> Self {
        let at = |name: &str| directory.join(name);
        let new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
        let out = |name: &str| {
            let (key, certificate) = (at(&format!("{name}.key")), at(&format!("{name}.pem")));
            [["-keyout".into(), key.into_os_string()], ["-out".into(), certificate.into_os_string()]].concat()
        };
        let usage = "keyUsage=critical,keyCertSign,digitalSignature";
        let authority = [&new[..], &["-subj", "/CN=authority", "-addext", usage]].concat();
        openssl(&authority, &out("authority"));
        let (ca, ca_key) = (at("authority.pem"), at("authority.key"));
        let (ca, ca_key) = (ca.to_str().unwrap(), ca_key.to_str().unwrap());
        let name = "subjectAltName=IP:127.0.0.1";
        let signed = ["-subj", "/CN=shop", "-addext", name, "-addext", "basicConstraints=critical,CA:FALSE"];
        openssl(&[&new[..], &signed[..], &["-CA", ca, "-CAkey", ca_key]].concat(), &out("shop"));
        Self { authority: at("authority.pem"), certificate: at("shop.pem"), key: at("shop.key") }
    }

    /// RSA with SHA-256, as `RS256` of a JSON web token has it.
    pub(crate) fn sign(&self, text: &str) -> Vec<u8> {
        let mut openssl = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(&self.key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`openssl` has to be installed");
        openssl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = openssl.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    }
}

fn openssl(arguments: &[&str], more: &[std::ffi::OsString]) {
    let output = Command::new("openssl").args(arguments).args(more).output();
    let output = output.expect("`openssl` has to be installed: apt install openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
