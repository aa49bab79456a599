//! The parts of a URL that come from a user: credentials, names, hosts.

use shakedown_spec::{Endpoints, Failure, FailureKind};

/// `text` as it stands in a part of a URL: everything but letters, digits and `-._~` becomes `%XX` (RFC 3986, 2.1).
#[must_use]
pub fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut url, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
        url
    })
}

/// The name by which containers on the same network reach `service`.
pub(crate) fn peer_host<'a>(service: &str, endpoints: &'a Endpoints) -> Result<&'a str, Failure> {
    endpoints.peer_host.as_deref().ok_or_else(|| {
        let title = format!("{service} cannot be reached by other containers: it is on no network");
        Failure::new(FailureKind::Invalid, title).hint(format!(
            "let net = Network::new(); then `.network(&net)` on {service} and on the other container"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A password with a slash or an at sign still makes a URL that clients read.
    #[test]
    fn what_separates_the_parts_of_a_url_is_encoded() {
        assert_eq!(percent_encoded("s3cret-._~"), "s3cret-._~");
        assert_eq!(percent_encoded("p@ss/w:rd %?#ü"), "p%40ss%2Fw%3Ard%20%25%3F%23%C3%BC");
    }
}
