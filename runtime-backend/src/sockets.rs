//! The kernel's tables of sockets: who listens in a network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether the tables (`/proc/net/tcp`, `tcp6`: proc_pid_net(5)) show a listener on this port that others can reach; one
/// at the address `except` is none of the container's.
///
/// Listeners on loopback do not count: images such as MongoDB's listen there while they initialise, on the port that
/// they serve later, and Docker's name server listens on 127.0.0.11.
pub(crate) fn listens_on(tables: &str, port: u16, except: Option<IpAddr>) -> bool {
    tables.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (Some(local), Some(state)) = (fields.nth(1), fields.nth(1)) else { return false };
        // 0A is TCP_LISTEN of the kernel's include/net/tcp_states.h.
        let Some((address, local_port)) = local.split_once(':').filter(|_| state == "0A") else {
            return false;
        };
        u16::from_str_radix(local_port, 16) == Ok(port)
            && read_address(address).is_some_and(|ip| !ip.is_loopback() && Some(ip) != except)
    })
}

/// Addresses stand as 32-bit words in the machine's byte order.
fn read_address(hex: &str) -> Option<IpAddr> {
    let word =
        |index: usize| u32::from_str_radix(hex.get(8 * index..8 * index + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let bytes: Vec<u8> = (0..4).filter_map(word).flatten().collect();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   999        0 1 1 0 100 0 0 10 0
   1: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0B00007F:9C41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 020011AC:0050 010011AC:D1A2 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 0000000000000000FFFF00000100007F:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000
   2: 00000000000000000000000001000000:1F92 00000000000000000000000000000000:0000 0A 00000000:00000000
";

    /// A port counts as open when others can reach it: not on loopback, not while a connection merely uses it.
    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_are_read_from_the_kernels_tables() {
        let open: Vec<u16> = [5432, 6379, 40001, 80, 8080, 8081, 8082]
            .into_iter()
            .filter(|port| listens_on(TABLE, *port, None))
            .collect();
        assert_eq!(open, [5432, 8080]);
        let runtimes = Some("0.0.0.0".parse().unwrap());
        assert!(!listens_on(TABLE, 5432, runtimes), "the runtime's own listener");
    }
}
