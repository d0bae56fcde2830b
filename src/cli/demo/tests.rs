//! The demo without a gateway: its clients talk to the first sim, which stands in for one that does not retry.

use super::*;

fn args(cycles: u64) -> Args {
    Args { listen: SocketAddr::from(([127, 0, 0, 1], 0)), interval: Duration::from_millis(400), cycles: Some(cycles) }
}

/// Starts a "gateway" that is the on-demand sim.
fn on_demand(options: GatewayOptions) -> Result<GatewayHandle, String> {
    let url = &options.backends.iter().find(|backend| !backend.spot).ok_or("no on-demand backend")?.url;
    let addr = url.trim_start_matches("http://").parse().map_err(|_| "no address")?;
    Ok(GatewayHandle { addr, admin_addr: None, stop: Box::new(|| ()) })
}

#[test]
fn one_cycle_plays_and_ends_well() {
    let story = Story::new(Instant::now());
    assert_eq!(play(&args(1), &story, on_demand), Ok(true));
}

#[test]
fn a_gateway_that_cannot_start_is_said() {
    let story = Story::new(Instant::now());
    let refused = play(&args(1), &story, |_| Err("no such thing"));
    assert_eq!(refused, Err("the gateway cannot start: no such thing".to_owned()));
}

#[test]
fn a_taken_port_makes_way_for_the_next() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let wanted = taken.local_addr().unwrap();
    let found = free(wanted).unwrap();
    assert!(found.port() > wanted.port() && found.port() <= wanted.port() + PORTS);
}

#[test]
fn two_spot_backends_take_turns() {
    let cast = Cast::start().unwrap();
    let names: Vec<_> = (0..3).map(|cycle| cast.victim(cycle).0).collect();
    assert_eq!(names, ["spot-a", "spot-b", "spot-a"]);
    assert_eq!(cast.backends().iter().filter(|backend| backend.spot).count(), 2);
}
