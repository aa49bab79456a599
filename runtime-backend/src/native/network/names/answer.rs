//! From a query to its answer (RFC 1035, 6891), as far as the directory has it.

use super::directory::Directory;
use super::message::{A, AAAA, ANY, Code, PTR, Query, Record, is_query};
use crate::native::network::addresses;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What becomes of a query.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// This is the answer.
    Answer(Vec<u8>),
    /// Others know.
    Elsewhere,
    /// It is none.
    Nothing,
}

/// Answers what the container `id` asks; `stream` if the answer may be as long as it is.
pub(super) fn reply(directory: &Directory, id: &str, bytes: &[u8], stream: bool) -> Reply {
    let Some(query) = Query::read(bytes) else {
        // What is not understood here may be understood elsewhere.
        return if is_query(bytes) { Reply::Elsewhere } else { Reply::Nothing };
    };
    match known(directory, id, &query) {
        Some((code, records)) => Reply::Answer(query.answer(code, &records, stream)),
        None => Reply::Elsewhere,
    }
}

/// What is known of a name; none if others have to be asked.
fn known(directory: &Directory, id: &str, query: &Query<'_>) -> Option<(Code, Vec<Record>)> {
    if let Some(address) = reversed(&query.name) {
        return match directory.name_at(id, address) {
            Some(name) => {
                let wanted = [PTR, ANY].contains(&query.kind);
                Some((Code::NoError, wanted.then_some(Record::Name(name)).into_iter().collect()))
            }
            // Addresses of these networks mean nothing to others.
            None => is_ours(address).then(|| (Code::NameError, Vec::new())),
        };
    }
    let addresses = directory.addresses(id, &query.name);
    if addresses.is_empty() {
        return None;
    }
    let wanted = |address: &IpAddr| match address {
        IpAddr::V4(_) => [A, ANY].contains(&query.kind),
        IpAddr::V6(_) => [AAAA, ANY].contains(&query.kind),
    };
    // A name without a record of this type is there all the same: no record, and no error. Resolvers that ask for both
    // families at once take such an error for the answer to both (musl), or keep it for all types.
    Some((Code::NoError, addresses.into_iter().filter(wanted).map(Record::Address).collect()))
}

/// The address that a name of the reverse tree is for (RFC 1035, 3.5; RFC 3596, 2.5).
fn reversed(name: &str) -> Option<IpAddr> {
    let name = name.to_ascii_lowercase();
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = labels.split('.').rev().map(str::parse).collect::<Result<_, _>>().ok()?;
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let digits: Vec<u32> = labels
        .split('.')
        .rev()
        .map(|label| label.chars().next().filter(|_| label.len() == 1)?.to_digit(16))
        .collect::<Option<_>>()?;
    (digits.len() == 32).then(|| {
        let address = digits.iter().fold(0_u128, |sum, digit| sum << 4 | u128::from(*digit));
        Ipv6Addr::from(address).into()
    })
}

/// Whether it is an address of networks that declare none of their own.
fn is_ours(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[0] == 10 && v4.octets()[1] >= 128,
        IpAddr::V6(v6) => addresses::is_ours(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::tests::shop;
    use super::super::message::failed;
    use super::*;
    use simple_dns::rdata::{OPT, RData};
    use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, Question, TYPE};

    fn query(name: &str, kind: TYPE, datagram: Option<u16>) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(name).unwrap();
        packet.questions.push(Question::new(name, kind.into(), QCLASS::CLASS(CLASS::IN), false));
        if let Some(udp_packet_size) = datagram {
            *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size, version: 0 });
        }
        packet.build_bytes_vec().unwrap()
    }

    /// What an answer says: its code, whether it is cut, and its records.
    fn said(reply: &Reply) -> String {
        let Reply::Answer(bytes) = reply else { return format!("{reply:?}") };
        let packet = Packet::parse(bytes).unwrap();
        assert_eq!((packet.id(), packet.questions.len()), (7, 1));
        assert!(packet.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED));
        let records = packet.answers.iter().map(|record| {
            assert_eq!(record.name.to_string(), packet.questions[0].qname.to_string());
            match &record.rdata {
                RData::A(a) => Ipv4Addr::from(a.address).to_string(),
                RData::AAAA(aaaa) => Ipv6Addr::from(aaaa.address).to_string(),
                RData::PTR(name) => name.0.to_string(),
                other => format!("{other:?}"),
            }
        });
        let cut = if packet.has_flags(PacketFlag::TRUNCATION) { " cut" } else { "" };
        format!("{:?}{cut} {}", packet.rcode(), records.collect::<Vec<_>>().join(" "))
    }

    /// Every resolver is given what the protocol says: no record is another thing than no name.
    #[test]
    fn answers_are_what_the_protocol_says() {
        let (directory, _told) = shop();
        let asked = |name, kind| said(&reply(&directory, "web-1", &query(name, kind, None), false));
        assert_eq!(asked("DB", TYPE::A), "NoError 10.128.1.3");
        assert_eq!(asked("db.", TYPE::AAAA), "NoError ");
        assert_eq!(asked("db", TYPE::MX), "NoError ");
        assert_eq!(asked("one", TYPE::AAAA), "NoError fd73::2");
        assert_eq!(asked("example.org", TYPE::A), "Elsewhere");
        assert_eq!(asked("3.1.128.10.in-addr.arpa", TYPE::PTR), "NoError db");
        assert_eq!(asked("9.1.128.10.in-addr.arpa", TYPE::PTR), "NameError ");
        assert_eq!(asked("9.1.127.10.in-addr.arpa", TYPE::PTR), "Elsewhere");
        let v6 = format!("2.{}3.7.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(asked(&v6, TYPE::PTR), "NoError web");
    }

    /// A name is there whatever it is asked for: a resolver that is told otherwise, because nobody here knows the type,
    /// may keep that for its addresses as well.
    #[test]
    fn a_type_that_nobody_knows_has_no_record() {
        let (directory, _told) = shop();
        for kind in [64_u16, 65, 99, 256, 257, 32769, 65280] {
            let mut bytes = query("db", TYPE::A, Some(1232));
            // Header, `db` with its length and its end.
            bytes[16..18].copy_from_slice(&kind.to_be_bytes());
            let Reply::Answer(answer) = reply(&directory, "web-1", &bytes, false) else { panic!("{kind}") };
            assert_eq!(answer[..12], [0, 7, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 1], "{kind}");
            assert_eq!(answer[12..20], bytes[12..20], "{kind}");
        }
    }

    /// The spelling of the question comes back: some resolvers check it, against forged answers.
    #[test]
    fn the_question_is_repeated_as_it_was() {
        let (directory, _told) = shop();
        let Reply::Answer(bytes) = reply(&directory, "web-1", &query("dB", TYPE::A, Some(4096)), false)
        else {
            panic!("no answer");
        };
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.questions[0].qname.to_string(), "dB");
        assert!(packet.opt().is_some());
    }

    /// The query of glibc with `trust-ad`, with `checking disabled` and a cookie as `dig` sends them, is one as any other.
    #[test]
    fn flags_and_options_do_not_matter() {
        let (directory, _told) = shop();
        let mut bytes = query("db", TYPE::A, None);
        bytes[3] |= 0x30;
        bytes[11] = 1;
        let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
        bytes.extend([&[0, 0, 41, 0x04, 0xd0, 0, 0, 0x80, 0, 0, 12][..], &cookie].concat());
        let Reply::Answer(answer) = reply(&directory, "web-1", &bytes, false) else { panic!("no answer") };
        assert_eq!(
            (answer[3], answer[11]),
            (0x90, 1),
            "recursion available, checking disabled as asked; EDNS"
        );
        assert_eq!(said(&Reply::Answer(answer)), "NoError 10.128.1.3");
    }

    /// An answer that is too long for a datagram is asked for again, over a connection. A resolver that does not do that
    /// has the addresses that fit.
    #[test]
    fn long_answers_are_cut() {
        let directory = Directory::default();
        let (_told, exit) = tokio::sync::watch::channel(None);
        for number in 0..60 {
            let id = if number == 0 { "web".to_owned() } else { format!("web-{number}") };
            let addresses = vec![Ipv4Addr::new(10, 128, 0, 2 + number).into()];
            let member =
                super::super::Member { id, names: vec!["web".into()], addresses, exit: exit.clone() };
            directory.enter("net", member);
        }
        let asked = |datagram, stream| reply(&directory, "web", &query("web", TYPE::A, datagram), stream);
        let Reply::Answer(short) = asked(None, false) else { panic!("no answer") };
        assert!((497..=512).contains(&short.len()), "{}", short.len());
        let short = said(&Reply::Answer(short));
        assert!(short.starts_with("NoError cut 10.128.0.") && short.split(' ').count() == 2 + 30, "{short}");
        assert_eq!(said(&asked(None, true)).split(' ').count(), 61);
        assert_eq!(said(&asked(Some(1232), false)).split(' ').count(), 61);
    }

    /// What is no query is not answered, and what is not understood is refused, not dropped.
    #[test]
    fn nonsense_is_survived() {
        let (directory, _told) = shop();
        let mut response = query("db", TYPE::A, None);
        response[2] |= 0x80;
        assert_eq!(reply(&directory, "web-1", &response, false), Reply::Nothing);
        assert_eq!(reply(&directory, "web-1", b"short", false), Reply::Nothing);
        let strange = [&query("db", TYPE::A, None)[..14], &[0xff; 9]].concat();
        assert_eq!(reply(&directory, "web-1", &strange, false), Reply::Elsewhere);
        let refused = failed(&strange, Code::ServerFailure).unwrap();
        assert_eq!((refused.len(), refused[3] & 15), (12, 2));
        let whole = query("db", TYPE::A, Some(1232));
        for end in 0..whole.len() {
            let part = reply(&directory, "web-1", &whole[..end], false);
            // All but the size of an answer is there.
            assert_eq!(matches!(part, Reply::Answer(_)), end >= 20, "{end}: {part:?}");
        }
    }
}
