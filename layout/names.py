"""The map of names: what each module, class, function, method, attribute and variable becomes."""

# ---- modules: old -> new, below `gateway.`
_M = """
logs                    logging
logwriter               line_writer
admission               connections.admission
announcer               services.status_publisher
calls                   connections.backend_calls
clients                 connections.manager
condition               node.status
conflation              delivery.conflation
control                 node.control_channel
departures              node.drain_manager
errands                 connections.async_commands
heartbeat               node.heartbeat
housekeeping            node.periodic_tasks
limits                  connections.client_limits
memberships             delivery.subscriptions
node                    node.node
outages                 connections.outages
outbox                  delivery.sender
presence                delivery.presence
publisher               delivery.redis_publisher
reaper                  node.reaper
relay                   delivery.dispatcher
reporter                node.stats_publisher
rulewatch               node.rules_comparison
streams                 delivery.recovery
turns                   delivery.slices
auth                    auth
auth.apikeys            auth.api_keys
auth.keyring            auth.key_set
auth.keyserver          auth.jwks_client
auth.authenticator      auth.token_verifier
auth.trust              auth.authenticator
auth.referee            auth.permission_checker
client.conversation     client.wire
client.limits           client.server_limits
client.pace             client.backoff
client.place            client.topic_position
client.topics           client.subscriptions
cluster.answers         broker.errors
cluster.bus             broker.pubsub
cluster.cache           cache.cache
cluster.channel         broker.channel
cluster.ear             broker.subscriber
cluster.entries         cache.store
cluster.envelope        broker.envelope
cluster.hashes          broker.hash_reader
cluster.history         broker.history
cluster.keeper          services.supervisor
cluster.keys            broker.keys
cluster.lane            broker.pipeline
cluster.leader          services.leadership
cluster.link            broker.client
cluster.listings        cluster.listings
cluster.lives           broker.server_life
cluster.loads           cache.single_flight
cluster.memory          broker.memory
cluster.near            cache.near_cache
cluster.outgoing        delivery.publisher
cluster.presence        cluster.presence_store
cluster.quota           cluster.quotas
cluster.reads           broker.read_batch
cluster.registry        cluster.registry
cluster.revoked         auth.revocations
cluster.rows            broker.rows
cluster.servers         broker.topology
cluster.services        services.manager
cluster.shards          broker.slot_map
cluster.slots           cluster.connection_limits
cluster.snapshots       broker.snapshots
cluster.states          services.states
core.backlog            core.buffer_limit
core.balance            core.rebalancing
core.breaker            core.circuit_breaker
core.deflate            transports.compression
core.dependencies       core.dependency_graph
core.figures            core.stats
core.frames             transports.frames
core.inflow             core.capacity
core.lineup             core.haproxy_slots
core.messages           core.commands
core.numbers            core.json_numbers
core.orders             core.control_messages
core.permits            core.permissions
core.places             protocols.native.event_ids
core.protocol           core.errors
core.rates              core.rate_limits
core.recent             core.recent_messages
core.records            core.service_records
core.roster             core.presence_set
core.sequence           core.stream_position
core.sources            core.address_groups
core.targets            core.backend_targets
core.topics             core.topic_rules
core.watchers           core.health_pollers
transport               transports
transport.connection    transports.connection
transport.eventstream   transports.http_stream
transport.handshake     transports.handshake
transport.line          transports.http1_output
transport.request       transports.http1
transport.socket        transports.websocket
web                     http
web.answers             http.api.resource
web.api                 http.api.router
web.cache               http.api.cache
web.clients             http.api.clients
web.door                http.middleware
web.entrance            http.handshake
web.events              http.streams
web.health              http.health
web.keys                http.api.key
web.nodes               http.api.nodes
web.openapi             http.api.openapi
web.pages               http.pages
web.publishing          http.api.publish
web.revocations         http.api.revocations
web.services            http.api.services
web.sockets             http.websocket
web.topics              http.api.topics
cli.commands            cli.command
cli.remote              cli.api_client
cli.haproxy             cli.haproxy_sync
"""
MODULES = {f"gateway.{a}": f"gateway.{b}" for a, b in (line.split() for line in _M.strip().splitlines())}

# Docstrings of packages that are new.
PACKAGES = {
    "gateway/node/__init__.py": "One gateway process: its lifecycle, lease, readiness, periodic work and control channel.",
    "gateway/connections/__init__.py": "The clients of this node: admission, limits, and the commands that they send.",
    "gateway/delivery/__init__.py": "Publish and deliver on this node: publisher, dispatcher, subscriptions, recovery, presence.",
    "gateway/services/__init__.py": "Background services of the cluster, with singletons and circuit breakers.",
    "gateway/cache/__init__.py": "The cache that all nodes share.",
    "gateway/broker/__init__.py": "Redis itself: topology, client, pipelines, pub/sub, envelopes, history, snapshots, keys.",
    "gateway/cluster/__init__.py": "Shared state under node leases: registry, presence, connection limits, quotas.",
    "gateway/protocols/__init__.py": "What is specific to one client protocol: a package each.",
    "gateway/protocols/native/__init__.py": "The native JSON protocol.",
    "gateway/http/api/__init__.py": "The HTTP API: resources and their OpenAPI description.",
    "gateway/http/__init__.py": "Everything that a node serves beside the WebSockets.",
    "gateway/transports/__init__.py": "What carries frames: WebSockets, Server-Sent Events, long polling.",
}

# ---- symbols that go to another module than the rest of their file: old full name -> new module
SPLITS = {}
def _split(module, target, names):
    for name in names.split():
        SPLITS[f"gateway.{module}.{name}"] = f"gateway.{target}"

_split("core.messages", "protocols.native.decoder",
       "decode _auth _subscribe _tokens _recover _mark _unsubscribe _publish _request _command _logs _ping _READERS "
       "_request_id _request_id_in _valid_topics _name MAX_TOKENS")
_split("core.protocol", "core.json_text", "Json loads dumps _has_nan_or_infinity MAX_NESTING RequestId")
_split("core.protocol", "core.names", "MAX_NAME_LENGTH is_name shown")
_split("core.protocol", "core.timestamps", "_EPOCH iso _iso_seconds")
_split("cluster.leader", "broker.fence", "Fence NO_FENCE Fenced")

# ---- top-level names: module -> old new ...
SYMBOLS = {}
def _s(module, text):
    words = text.split()
    for old, new in zip(words[::2], words[1::2], strict=True):
        SYMBOLS[f"gateway.{module}.{old}"] = new

_s("admission", "ENDLESS MAX_UNLIMITED SAYS REASONS most_connections connection_limit")
_s("announcer", """Announcer StatusPublisher TELL_SECONDS REPEAT_SECONDS LOOK_SECONDS POLL_SECONDS START_LOOKS START_POLLS
   register register_node_services _until_well _until_healthy _well _healthy count count_instances broken open_breakers
   changed changed_fields""")
_s("backend", "BackendAway BackendUnreachable Answer BackendResponse TRIES ATTEMPTS")
_s("calls", "Calls BackendCalls _Lane _ClientCalls")
_s("clients", "Clients ConnectionManager NOT_ANY_MORE NOT_ALLOWED_ANY_MORE")
_s("condition", "Condition NodeStatus")
_s("control", "Control ControlChannel")
_s("departures", "Departures DrainManager _FAREWELLS _CLOSE_MESSAGES")
_s("errands", "Errands AsyncCommands Budgets PublishLimits")
_s("heartbeat", "BEATS_A_LEASE RENEWALS_PER_LEASE")
_s("housekeeping", "Housekeeping PeriodicTasks Act TaskFunction _Step _Task STEP_SECONDS TASK_SECONDS")
_s("limits", "Limits ClientLimits")
_s("memberships", "Memberships Subscriptions _Recovery _TopicRecovery")
_s("outages", "Outages OutageNotifier")
_s("outbox", "Outbox Sender")
_s("presence", "Presence PresenceTracker House LocalClients _Room _TopicPresence listed member_json CHECKED CHECKED_TOPICS TOPICS WRITE_TOPICS")
_s("publisher", "Publisher RedisPublisher")
_s("reaper", "BATCH_PEOPLE BATCH_MEMBERS")
_s("relay", "Relay Dispatcher SAID POSTED LEAVES LEAVES_PER_TURN")
_s("reporter", "Reporter StatsPublisher")
_s("rulewatch", "RuleWatch RulesComparison")
_s("streams", "Streams Recovery Audience StreamConsumer _Stream _TopicStream")
_s("turns", "TURN_ITEMS SLICE_ITEMS in_turns in_slices each_in_turns each_in_slices InOrder SlicedQueue")
_s("logs", "RareLog RateLimitedLog _Lines _StructlogSink _Handler _LoggingHandler _Stderr _StderrWriter")
_s("auth.apikeys", "EVERYTHING ALL_SCOPES KeysError ApiKeysError SINGLE SINGLE_KEY_NAME of_administrator administrator_key")
_s("auth.authenticator", "Authenticator TokenVerifier LATEST MAX_TIMESTAMP")
_s("auth.keyring", "Keyring KeySet KeyFault KeyError_ SHARED HMAC_ALGORITHMS RSA RSA_ALGORITHMS EDWARDS EDDSA_ALGORITHMS")
SYMBOLS["gateway.auth.keyring.KeyFault"] = "InvalidKey"
_s("auth.keyserver", "KeyServer JwksClient")
_s("auth.trust", "Trust Authenticator")
_s("auth.referee", "Referee PermissionChecker")
_s("client.conversation", "Conversation Wire Lost ConnectionLost")
_s("client.limits", "Limits ServerLimits Pace SendRate stated parse_limits")
_s("client.pace", "Heartbeat PingMonitor Reports FailureLog")
_s("client.place", "Place TopicPosition")
_s("client.topics", "Topics Subscriptions_")
SYMBOLS["gateway.client.topics.Topics"] = "TopicSubscriptions"
_s("cluster.answers", """Command RedisCommand Refused CommandRefused failure to_unavailable heeding cancellable fault refusal_for
   FAULTS ERROR_CODES _FAULT _ERROR_CODE""")
_s("cluster.bus", "Bus PubSub Listener PubSubListener PART_SECONDS PARTIAL_SECONDS LOOK_SECONDS TOPOLOGY_SECONDS _named _describe_loss")
_s("cluster.cache", "Timed WithTtl _Nobody _IgnoreOutages pack encode")
_s("cluster.channel", "State ChannelState Hearer ChannelSubscriber")
_s("cluster.ear", "Ear Subscriber Owner SubscriberCallbacks _Order _PendingCommand _ELSEWHERE _MOVED_ERRORS _JOINED _SUBSCRIBE_REPLIES _joins _confirmations")
_s("cluster.entries", "Entries CacheStore Taken CacheLookup AWAY_SECONDS UNAVAILABLE_SECONDS _NOTHING _NO_KEY")
_s("cluster.envelope", "Kind EnvelopeKind UnknownVersion UnknownEnvelopeVersion")
_s("cluster.hashes", "Hashes HashReader")
_s("cluster.history", "Top HistoryTop")
_s("cluster.keeper", "Keeper Supervisor Act ServiceFunction _Counted _CountedFailure")
_s("cluster.lane", "Lanes Pipelines _Lane _Pipeline")
_s("cluster.leader", "Leadership LeaderElection Lease LeaderLease RENEWALS_A_LEASE RENEWALS_PER_LEASE")
_s("cluster.link", "Link RedisClient")
_s("cluster.lives", "Lives ServerLife")
_s("cluster.loads", "Loads SingleFlight Order LoadRequest Loaded LoadResult PATIENCE MAX_WAITS")
_s("cluster.near", "Near NearCache _Entry _CachedText Reading PendingRead")
_s("cluster.outgoing", "Outgoing Publisher TooLarge PublicationTooLarge")
_s("cluster.presence", "Attendance PresenceStore PEOPLE_MS MEMBERS_MS attendee decode_member _attendee _decode_member told encode_presence heard decode_presence")
_s("cluster.quota", "Quota PublishQuota Allowance StorageQuota AS_MANY_AS_THERE_ARE TAKE_AVAILABLE ALL_OR_NONE TAKE_ALL_OR_NONE IN_ANY_CASE TAKE_ALWAYS")
_s("cluster.reads", "Reads ReadBatch _Batch _ReadRequest")
_s("cluster.registry", "Memory LocalState living live_nodes STORM_SECONDS BURST_SECONDS MAX_DEAD MAX_EXPIRED")
_s("cluster.revoked", "Revoked RevocationStore Full TooManyRevocations")
_s("cluster.rows", "Rows RowDecoder Kind RowKind")
_s("cluster.servers", """Servers Topology _Sentinels _SentinelList STRAY_LOOKS STRAY_CHECKS _AsksRole _RoleCheckedConnection
   _pool _make_pool""")
_s("cluster.services", "BEATS_A_LEASE RENEWALS_PER_LEASE Watcher ServiceWatcher")
_s("cluster.shards", "Shards SlotMap ONLY ONLY_SERVER named resolve_server address server_name")
_s("cluster.slots", "Slots ConnectionLimits Limit ConnectionLimit _Whos _Keys _Newcomer _Request _LEASE_GONE _LEASE_LOST")
_s("cluster.states", "States ServiceStates Report ServiceReport TooMany TooManyServices Outdated OutdatedReport LOOKED_AT MAX_RECORDS_READ")
_s("core.backlog", "Backlog BufferLimit Holder BufferedClient EIGHTH RELEASED_FRACTION")
_s("core.balance", "Move ClientMove WARM_SECONDS SLOW_START_SECONDS RECONNECTS_A_SECOND RECONNECTS_PER_SECOND moments close_times")
_s("core.breaker", "Breaker CircuitBreaker State BreakerState REST_SECONDS QUIET_SECONDS")
_s("core.deflate", "Deflater Compressor _KEPT_MESSAGES _CACHED_MESSAGES _KEPT_BYTES _CACHED_BYTES")
_s("core.dependencies", "dependants dependents lines tree_lines")
_s("core.figures", "Reading StatsSample between stats_between")
_s("core.hub", "Subscriber Recipient joining joining_topic of_topic topic_audience of_user user_audience of_role role_audience personal personal_audiences")
_s("core.identity", "KeysAway KeysUnavailable")
_s("core.inflow", "Inflow Capacity Limit CapacityLimit SPARE_PART SPARE_FRACTION")
_s("core.lineup", "Node ListedNode Server HaproxyServer Fill AssignSlot Free FreeSlot Change SlotChange NOWHERE UNUSED_ADDRESS changes slot_changes")
_s("core.messages", "Command BackendCommand ClientMessage Command _READERS _DECODERS read_price read_cost")
_s("core.orders", """OrderError ControlError Whom ClientSelector Disconnect DisconnectClients Unsubscribe UnsubscribeClients
   Forget ForgetHistory Drain DrainNode Move MoveClients Revoke RevokeTokens Order ControlMessage _whom _selector""")
_s("core.permits", "Judge ContinueChecks weigh check_rule judge check_topics JUDGE_TOPICS TOPICS_PER_TURN")
_s("core.places", "Places EventIds _PLACED _POSITIONED _TOLD _WITH_DELAY _place _encode_position")
_s("core.position", "same_beginning same_unborn later unborn_at UNBORN_HOURS UNBORN_HOURS")
_s("core.protocol", "Close CloseCode Code ErrorCode shown quoted iso iso_time _iso_seconds _iso_second")
_s("core.rates", "Rate RateLimit Meter ClientUsage Purse TokenBucket Outcome RateOutcome verdict rate_outcome PARTS_A_MESSAGE PARTS_PER_MESSAGE _LOST _ROUNDING")
_s("core.recent", "Recent RecentMessages Sized HasText")
_s("core.records", "Status ServiceStatus Stats OperationStats Record ServiceRecord WINDOW STATS_WINDOW _BADNESS _SEVERITY worst worst_status")
_s("core.roster", "Attendee Member News PresenceChanges Roster PresenceSet")
_s("core.sequence", "Sequence StreamPosition Settled ReadResult Page StreamPage Entry StreamEntry beginning first_entries _is _same_message")
_s("core.session", """Reply SendReply Login ChangeIdentity Join JoinTopics Leave LeaveTopics Say PublishMessage Status SendStatus
   Lookup ReadTopic Fetch FetchFromBackend Forward ForwardToBackend Report LogBrowserLines Ask AskBackend Refresh RefreshKeys
   Charge ChargeRate Quit CloseConnection Settled FinalEffect Found Findings NOTHING NO_FINDINGS Rules SessionRules _Needed _NeedsFindings""")
_s("core.sources", "Sources AddressGroups")
_s("core.targets", "target_of backend_target is_segment is_path_segment")
_s("core.topics", "FIGURES STATS")
_s("core.watchers", "Watchers HealthPollers _Watcher _Poller MAX_WATCHERS MAX_POLLERS FALL FAILED_CHECKS")
_s("transport.connection", "Owner ConnectionOwner Facts ClientInfo Stage ConnectionStage _Work _InputState")
_s("transport.eventstream", "EventStream HttpStream EventStreams HttpStreams Taken StreamInUse")
_s("transport.handshake", "Opener HandshakeCallbacks _JUDGED _CHECKED_HEADERS")
_s("transport.line", "Line Http1Output")
_s("transport.request", "RequestProtocol Http1Protocol Inflow AdmissionPolicy Limit RequestLimit")
_s("transport.socket", "Socket WebSocket")
_s("web.answers", "_no_json _not_json body_of read_body key_of api_key limit_of parse_limit encoding_of content_encoding announced_bytes content_length")
_s("web.door", "Door SecurityMiddleware is_served is_allowed_host")
_s("web.entrance", "Guest AcceptedClient Refusal HandshakeRefused receive accept_handshake let_in open_connection")
_s("web.events", "say receive_post QUIET_SECONDS POLL_SECONDS")
_s("web.services", "_SAID _REPORTED_STATUS _NOT_TOLD _HIDDEN_FIELDS")
_s("web.sockets", "Sockets WebSocketEndpoint OPERATORS OPERATOR_PATH")
_s("cli.commands", "speaking api_command Failure CommandFailure Misuse CommandMisuse")
_s("cli.haproxy", "Fault SyncError Runtime RuntimeSocket Sync HaproxySync _judge _log_change")
_s("cli.remote", "Remote ApiClient RemoteError ApiClientError")

# ---- members: class -> old new ...
MEMBERS = {}
def _m(cls, text):
    words = text.split()
    for old, new in zip(words[::2], words[1::2], strict=True):
        MEMBERS[f"gateway.{cls}.{old}"] = new

_m("admission.Admission", """refuses refusal is_crammed is_overloaded cut_off request_aborted enter acquire forget cancel
   leave release become change_identity _become _change_identity""")
_m("transport.request.Inflow", "refuses refusal is_crammed is_overloaded cut_off request_aborted")
_m("transport.request.RequestProtocol", "refuses refusal watch set_user_timeout _cut_off _abort_request _due _parse_due")
_m("core.inflow.Inflow", "refuses exceeded is_crammed is_overloaded")
_m("backend.Backend", "open is_open waiting waiting_calls")
_m("backend.Answer", "good is_success")
_m("calls.Calls", "_carry_out _execute")
_m("clients.Clients", """admit accept sweep check_timeouts _sweep _check_timeout enforce enforce_revocations _enforce _enforce_revocations
   hear post_received on_own node_message_received obey control _obey _control _named _selected _take _take_topics gap topic_gap
   attendees topic_members attendee topic_member channel topic_channel show send_presence row client_row ids client_ids
   received message_received closed connection_closed counted control_frame_received counted_part fragment_received
   grew buffer_grew deflate compress _judge_on _continue_checks _again _handle_again _carry_out _carry_out_effect""")
_m("transport.connection.Owner", """received message_received closed connection_closed counted control_frame_received
   counted_part fragment_received grew buffer_grew deflate compress""")
_m("presence.House", "attendees topic_members attendee topic_member channel topic_channel show send_presence")
_m("condition.Condition", "reasons unready_reasons _reasons_but_lease _unready_reasons_but_lease impaired impairments row node_row listening is_subscribed")
_m("conflation.Conflation", "deliver conflate")
_m("control.Control", "_leave _shut_down order broadcast on_order message_received")
_m("departures.Departures", """asked_ready readiness_checked refuses refuses_handshake admitted client_accepted hasten finish_now
   move rebalance _send_away _close_client""")
_m("departures.Phase", "STAYING SERVING SHEDDING REBALANCING REFUSING REJECTING")
_m("errands.Errands", "look_up read_topic _look_up _read_topic find_out resolve _find_out _resolve publish publish_message")
_m("errands.Budgets", "quota publish_quota allowance storage_quota")
_m("limits.Limits", """_turn_out _disconnect grew buffer_grew forget connection_closed _relieve _close_largest count_part count_fragment
   report log_browser_lines""")
_m("memberships.Memberships", """admit accept login change_identity degrade redis_lost go_on resume _become _join_personal
   _answered _join_confirmed _identify _leave_personal _let_in _admit _first _initial_messages _give_up _fail _wants _is_wanted
   _enter _add_member _leave _remove_member _join _join_channels""")
_m("node.Node", "_memory _make_local_state life lifespan asked_ready readiness_checked leave shut_down _listen _join_channels _make_housekeeping _make_periodic_tasks _on_lease _lease_renewed _on_readiness _readiness_changed")
for _c in ("cluster.bus.Listener", "cluster.cache._Nobody", "cluster.services.ServiceManager", "outages.Outages"):
    _m(_c, "bus_lost pubsub_lost bus_missed pubsub_missed bus_resumed pubsub_restored")
_m("outages.Outages", "_distrust _invalidate_streams _tell_gaps _send_gaps _tell_all _send_all _tell_each _send_each")
_m("outbox.Outbox", "refuse send_error fail send_internal_error time timestamp")
_m("presence.Presence", """ready prepare doubt mark_suspect people members _bury _remove_nodes _stir _mark_changed receive word_received
   close close_topic _read _read_topic""")
_m("relay.Relay", """stored storage_cost abandon cancel_wait ready prepare lost channels_lost missed repair _keep _remember
   _pass_on _republish on_ingest ingest_received gap report_gap join join_channels leave leave_channels forward forward_post
   _on_audience _message_received _on_presence _presence_received""")
_m("reporter.Reporter", "hurry publish_now")
_m("streams.Audience", "gap report_gap")
_m("streams.Streams", """ready prepare settled is_ready overhear unnumbered_delivered place position missed missed_since
   distrust invalidate doubt mark_suspect _ask _start_read _settle _catch_up_stream receive message_received close close_topic
   forget forget_messages""")
_m("streams._Stream", "busy is_reading suspect is_suspect")
_m("turns.InOrder", "begin add")
_m("cluster.bus.Bus", """listen subscribe ignore unsubscribe abandon cancel_wait hearing confirmed_since whole is_complete
   hand_on message_received confirmed channel_confirmed changed channel_changed refused channels_refused disrupted
   connection_lost lost subscriber_lost resumed subscriber_resumed _tell_lost _notify_lost _place _assign _follow _follow_topology _dismiss _remove
   _look _watch_topology _on_left _master_left _start _start_subscriber""")
_m("cluster.ear.Owner", """hand_on message_received confirmed channel_confirmed changed channel_changed refused channels_refused
   disrupted connection_lost lost subscriber_lost resumed subscriber_resumed""")
_m("cluster.channel.Hearer", "hears is_connected excuse forget_missed drop remove on_check check_received")
_m("cluster.ear.Ear", """hears is_connected excuse forget_missed drop remove on_check check_received take add give_up reconnect
   _converse _run_connection _until_kicked _until_reconnect _on_joined _subscribed _on_left _unsubscribed
   _on_refusal _command_refused _on_put_out _unsubscribed_by_server _settle _report_resumed disconnected connection_ended""")
_m("cluster.ear._Order", "joins subscribes")
_m("cluster.channel.State", "OUT UNSUBSCRIBED JOINING SUBSCRIBING IN SUBSCRIBED LEAVING UNSUBSCRIBING")
_m("cluster.channel.Waiter", "done callback")
_m("cluster.entries.Entries", "remembered cached take read_or_lock keep write_loaded drop delete put write _write _write_with_notice release unlock _ask _execute _read _end_read")
_m("cluster.entries.Taken", "ours is_ours stale is_stale")
_m("cluster.near.Near", "heard set_connection reading begin_read read end_read")
_m("cluster.loads.Loads", "text_of get _fly _run _obtain _load_once")
_m("cluster.history.History", "append append_command hours hours_now peek tops renew renew_epoch _append _append_script _read _read_script _renew _renew_script _peek _peek_script")
_m("cluster.keeper.Keeper", """say update told current_record keep run _again_and_again _restart_loop ended operation_ended _end _stop_run
   _act _call""")
_m("cluster.keys.Keys", """own node_channel people presence cached cache_value cached_under cache_pattern slots connection_nodes
   node_slots node_connections ingested ingest_claim ready node_ready""")
_m("cluster.lane.Lanes", "send transact _go_on _resume _wait _wait_for_move _lane_of _pipeline_of")
_m("cluster.lane._Lane", "take take_slot add enqueue end finish")
_m("cluster.lane.Durability", "lack missing")
_m("cluster.leader.Leadership", "_ask _request")
_m("cluster.link.Link", """ask execute ask_all execute_all ask_each execute_each ask_at execute_at leave drop_connections
   _follow _follow_redirects _place _server_of moved is_moved learn refresh_topology doubt mark_stale send transact
   subscriber connect_subscriber _on_left _master_left""")
_m("cluster.link.Script", "whole with_source")
_m("cluster.outgoing.Outgoing", "stored storage_cost tell_rules write_rules _learn_rules _read_rules")
_m("cluster.presence.Attendance", "living live_nodes _attend _write_script _living _live_nodes_script")
_m("cluster.reads.Reads", "ask execute ask_each execute_each")
_m("cluster.registry.Registry", """beat renew_lease living live_nodes leave remove_rows _beat _renew_lease_script _enroll _enroll_script
   _living _live_nodes_script _write _write_script""")
_m("cluster.registry.Memory", "about node_row client client_row clients client_ids topic subscriber_count dropped rows_dropped")
_m("cluster.revoked.Revoked", "refuses is_revoked ends effect_of hear add check refresh _judge _is_revoked _write _write_rows _read _read_all")
_m("core.revocations.Revocations", "refuses is_revoked")
_m("cluster.rows.Rows", "take decode each decode_each")
_m("cluster.servers.Servers", "at client judge check_role leave drop_connections doubt mark_stale learn refresh _learn _refresh moved is_moved")
_m("cluster.services.ServiceManager", "tell_all rewrite_all heard notices_heard local supervisors")
_m("cluster.shards.Shards", "learn update")
_m("cluster.slots.Slots", "take acquire leave release_all _whos _counted_keys _take_here _acquire_here")
_m("cluster.quota.Quota", "take charge")
_m("cluster.quota.Allowance", "take charge _charge _charge_command")
_m("cluster.snapshots.Snapshots", """keep publish_command settled is_ready ready prepare receive value_received begin begin_topic
   _keep _publish_script _last _read_script _read _read_command""")
_m("cluster.states.States", """_enlist _index_script _tell _write_script _recall _read_script _members _names_script
   forget forget_service read read_service""")
_m("core.backlog.Backlog", "grew grow relieve excess forget remove")
_m("core.hub.Hub", "_strike _remove_member _hand_out _flush_waiting _are_apart _are_disjoint")
_m("core.lineup.Server", "seconds idle_seconds")
_m("core.rates.Meter", "message count_message part count_fragment more count_more subscribe count_topics log count_log_lines")
_m("core.rates.Outcome", "FINE ALLOWED ENOUGH DISCONNECT")
_m("core.records.Stats", "told summary _lasted _durations")
_m("core.roster.Roster", "people members news changes")
_m("core.sequence.Sequence", "receive message_received doubt mark_suspect ask begin_read fill end_read rename set_epoch overheard unnumbered_delivered forget forget_messages")
_m("core.sequence.Settled", "went_back is_rewound gap has_gap")
_m("core.session.Session", "_become _change_identity _beyond _lost_topics _judge _check_topics _weigh _check")
_m("core.session.Found", "said permissions")
_m("core.session.Login", "taken lost_topics")
_m("core.session.Join", "taken lost_topics login requires_login")
_m("core.watchers.Watchers", "asked checked told all_informed")
_m("transport.connection.Connection", "_carry_out _handle _waits _must_wait _drop _drop_input _leave _report_closed")
_m("transport.connection.Facts", "connected_ms connected_ms")
_m("transport.eventstream.EventStream", "say post_received take take_frames end finish")
_m("transport.handshake.Opener", "accepted handshake_accepted refused handshake_refused")
_m("transport.handshake.Handshake", "receive start refuse reject")
_m("transport.line.Line", "hold pause_while release detach")
_m("transport.socket.Socket", "_deaf _ignores_input")
_m("web.entrance.Refusal", "answer response")
_m("auth.trust.Trust", "holds is_valid reason unready_reason authenticator verifier")
_m("auth.keyserver.KeyServer", "_answer _resolve_waiters")
_m("auth.keyring.Keyring", "serve replace_served")
_m("auth.referee.Referee", "judge check _remember _cached")
_m("client.conversation.Conversation", "beat send_pings give_up abort end fail_waiters")
_m("client.place.Place", "take message_received lost gap_reported")
_m("client.limits.Pace", "seconds delay take count refused empty")
_m("client.topics.Topics", "heard frame_received outgoing messages_due _turned_down _subscribe_refused leave remove leave_all remove_topic end end_all")
_m("client.pace.Heartbeat", "ping ping_due heard frame_received")
_m("client.events.Presence", "about about")
_m("client.subscription.Subscription", "enter acknowledged offer put")
_m("cli.haproxy.Runtime", "make carry_out")
_m("transport.request.Inflow", "is_exhausted is_overloaded")
_m("admission.Admission", "is_exhausted is_overloaded")
_m("core.inflow.Inflow", "is_exhausted is_overloaded")
_m("cluster.ear.Owner", "deliver message_received")
_m("cluster.bus.Bus", "deliver message_received complete is_complete _reload_map _reload_topology _apply_map _apply_topology")
_m("cluster.channel.ChannelHolder", "connected is_connected clear_missed forget_missed drop remove on_check check_received")
_m("cluster.ear.Ear", "connected is_connected clear_missed forget_missed")
_m("transport.eventstream.EventStream", "receive_lines post_received")
_m("clients.Clients", "receive_lines post_received")
_m("presence.Host", "attendees topic_members attendee topic_member channel topic_channel show send_presence")
_s("presence", "Host LocalClients")
_s("cluster.channel", "ChannelHolder ChannelSubscriber")
_s("cluster.quota", "_Purses _TokenBuckets")
_s("transport.eventstream", "AlreadyTaken StreamInUse")
_s("core.permits", "JudgeLater ContinueChecks decide check_rule")
_s("core.effects", "Reply SendReply ReplyStatus SendStatus")
SYMBOLS = {key: new for key, new in SYMBOLS.items() if key.rsplit(".", 1)[1] != new}
MEMBERS = {
    key: new for key, new in MEMBERS.items() if key.rsplit(".", 1)[1] != new and not new.endswith("_script")
}
SYMBOLS = {key: new for key, new in SYMBOLS.items() if key.rsplit(".", 1)[1] != new}

PARAMS = {
    "gateway.control.Control.__init__:leave": "shut_down",
}

# ---- variables, attributes and parameters, by their type: class -> old new ...
WORDS = {}
def _w(cls, text):
    words = text.split()
    WORDS[f"gateway.{cls}"] = dict(zip(words[::2], words[1::2], strict=True))

_w("admission.Admission", "")
_w("announcer.Announcer", "announcer status_publisher")
_w("calls.Calls", "calls backend_calls")
_w("calls._Lane", "lane client_calls lanes client_calls")
_w("clients.Clients", "clients connections")
_w("condition.Condition", "condition status")
_w("control.Control", "control control_channel")
_w("departures.Departures", "departures drain_manager")
_w("errands.Errands", "errands async_commands")
_w("errands.Budgets", "budgets publish_limits")
_w("housekeeping.Housekeeping", "housekeeping periodic_tasks steps tasks")
_w("memberships.Memberships", "memberships subscriptions")
_w("outages.Outages", "outages outage_notifier")
_w("outbox.Outbox", "outbox sender")
_w("relay.Relay", "relay dispatcher")
_w("reporter.Reporter", "reporter stats_publisher")
_w("rulewatch.RuleWatch", "rule_watch rules_comparison")
_w("streams.Streams", "streams recovery")
_w("presence.House", "house clients")
_w("presence.Host", "host clients house clients")
_w("presence._Room", "room state")
_w("auth.keyring.Keyring", "keyring token_keys ring token_keys")
_w("auth.keyserver.KeyServer", "keyserver jwks_client server jwks_client key_server jwks_client")
_w("auth.trust.Trust", "trust authenticator")
_w("auth.authenticator.Authenticator", "authenticator verifier")
_w("auth.referee.Referee", "referee permission_checker")
_w("client.conversation.Conversation", "talk wire conversation wire")
_w("client.place.Place", "place position")
_w("cluster.bus.Bus", "bus pubsub")
_w("cluster.ear.Ear", "ear subscriber ears subscribers")
_w("cluster.ear.Owner", "owner callbacks")
_w("cluster.channel.ChannelHolder", "ear subscriber")
_w("cluster.entries.Entries", "entries store")
_w("cluster.near.Near", "near near_cache")
_w("cluster.loads.Loads", "loads single_flight")
_w("cluster.loads.Order", "order request")
_w("cluster.keeper.Keeper", "keeper supervisor")
_w("cluster.lane._Lane", "lane pipeline")
_w("cluster.lane.Lanes", "lanes pipelines")
_w("cluster.leader.Leadership", "leadership election")
_w("cluster.link.Link", "link redis cache_link cache_redis")
_w("cluster.outgoing.Outgoing", "outgoing publisher")
_w("cluster.presence.Attendance", "attendance presence_store")
_w("cluster.quota.Allowance", "allowance storage_quota")
_w("cluster.quota.Quota", "quota publish_quota")
_w("cluster.reads.Reads", "reads read_batch")
_w("cluster.registry.Memory", "memory local_state")
_w("cluster.revoked.Revoked", "revoked revocation_store")
_w("cluster.servers.Servers", "servers topology")
_w("cluster.shards.Shards", "shards slot_map")
_w("cluster.slots.Slots", "slots connection_limits seats connection_limits")
_w("core.backlog.Backlog", "backlog buffer_limit")
_w("core.inflow.Inflow", "flow capacity inflow capacity")
_w("core.permits.Judge", "")
_w("core.places.Places", "places event_ids")
_w("core.position.Position", "place position")
_w("core.rates.Meter", "meter usage")
_w("core.rates.Purse", "purse tokens")
_w("core.roster.Attendee", "attendee member")
_w("core.roster.Roster", "roster presence_set")
_w("core.sequence.Sequence", "sequence stream_position")
_w("core.sources.Sources", "sources address_groups")
_w("core.watchers.Watchers", "watchers pollers")
_w("core.hub.Subscriber", "subscriber recipient")
_w("transport.connection.Facts", "facts info")
_w("transport.eventstream.EventStreams", "home streams")
_w("transport.handshake.Opener", "opener callbacks")
_w("transport.line.Line", "line output")
_w("web.entrance.Guest", "guest client")
_w("cli.remote.Remote", "remote api_client")
WORDS["tests:gateway.cluster.link.Link"] = {"link": "redis_client", "cache_link": "cache_redis_client"}
WORDS = {key: words for key, words in WORDS.items() if words}

# Classes of tests that stand for one of ours without deriving from it: test class -> our classes.
IMPLEMENTS = {
    f"tests.unit.{test}": [f"gateway.{one}" for one in ours.split()] for test, ours in {
        "fake_redis.FakeRedis": "cluster.link.Link",
        "test_announcer.FakeStates": "cluster.states.States",
        "test_announcer.FakeRun": "cluster.keeper.Run",
        "test_heartbeat.Lease": "cluster.registry.Registry",
        "test_lane.Redis": "cluster.servers.Servers",
        "test_leader.FakeElection": "cluster.link.Link",
        "test_memberships.Streams": "streams.Streams",
        "test_memberships.Relay": "relay.Relay",
        "test_outages.World": "relay.Relay outbox.Outbox memberships.Memberships",
        "test_presence.Rows": "cluster.presence.Attendance",
        "test_presence_model.Rows": "cluster.presence.Attendance",
        "test_reads.Redis": "cluster.link.Link",
        "test_registry_calls.FakeRows": "cluster.link.Link",
        "test_relay.Link": "cluster.link.Link",
        "test_relay.Bus": "cluster.bus.Bus",
        "test_revoked.Link": "cluster.link.Link",
        "test_trust.Link": "cluster.link.Link",
        "test_slow_input.Door": "transport.request.Inflow",
        "test_streams.FakeHistory": "cluster.history.History",
        "test_streams.Node": "streams.Audience",
        "test_eventstream.House": "transport.connection.Owner",
        "test_memberships.Node": "transport.connection.Owner",
        "test_socket.Ledger": "transport.connection.Owner",
    }.items()
}

# Words of stand-ins without a type, file by file.
STAND_INS = {
    "tests/unit/test_control.py": "obey control enforce enforce_revocations hear add check refresh refuses is_revoked ends effect_of "
        "forget forget_messages move rebalance revoked revocation_store",
    "tests/unit/test_failing.py": "become change_identity leave release",
    "tests/unit/test_traces.py": "abandon cancel_wait leave release",
    "tests/unit/test_condition.py": "departures drain_manager listening is_subscribed",
    "tests/unit/test_memberships.py": "place position",
    "tests/unit/test_presence.py": "living live_nodes",
    "gateway/transport/request.py": "is_crammed is_overloaded is_exhausted is_overloaded",
}

# ---- Lua steps
LUA = dict(zip(*[iter("""
append append_history read read_history peek peek_history renew renew_epoch keep publish_snapshot last read_snapshot
attend write_presence beat renew_lease enroll index_node forget unindex_node write write_rows reap reap_presence
bury remove_node living live_nodes lead acquire_leadership resign release_leadership enlist index_services
tell write_service recall read_services members page_sorted_set page page_hash take read_cache put write_cache
drop delete_cache yield unlock_cache quota take_tokens revoke revoke_tokens slots count_connections life server_life
""".split())] * 2, strict=True))

WORDS["gateway.cluster.link.Script"] = LUA
