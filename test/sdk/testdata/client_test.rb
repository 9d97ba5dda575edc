# Tests of the client: client_test.rb SOCKET

require "claviger"
require "timeout"
require "tmpdir"

SERVER = ARGV.fetch(0)
NOT_VALID = '{"items":[{}]}'

def check(what, ok)
  abort "#{caller(1, 1).first}: #{what}" unless ok
end

def raises(kind)
  yield
  nil
rescue kind => error
  error
end

# Returns a key whose server answers each connection in a given way; nil closes it.
def fake(*answers, timeout: 2.0)
  path = File.join(Dir.mktmpdir, "s")
  listener = UNIXServer.new(path)
  ($held ||= []) << listener
  Thread.new do
    answers.each do |parts|
      connection = listener.accept
      $held << connection
      parts.each do |part|
        connection.readpartial(65_536)
        part ? connection.write(part) : connection.shutdown
      end
    end
  end
  Claviger::Key.new("k", socket: path, timeout: timeout)
end

def answer(body, *headers)
  headers = ["Content-Length: #{body.bytesize}"] if headers.empty?
  (["HTTP/1.1 200 OK", *headers].join("\r\n") + "\r\n\r\n" + body).b
end

key = Claviger::Key.new("dev/shop/rails", socket: SERVER)
token = key.protect("rails.verifier", "größe", salt: "mail", purpose: "p", expires: "2030-03-17T17:46:40Z")
found = key.unprotect("rails.verifier", token, salt: "mail", purpose: "p")
check "tokens", [found.payload, found.version, found.renew] == ["größe".b, 1, false]
check "another purpose", key.unprotect("rails.verifier", token, salt: "mail", purpose: "q").nil?
ended = key.protect("rails.verifier", "x", salt: "mail", expires: "2001-01-01T00:00:00Z")
check "ended", [false, true].map { |all| key.unprotect("rails.verifier", ended, expired: all, salt: "mail").nil? } == [true, false]
large = "x" * 100_000
check "large", key.unprotect("rails.encrypted", key.protect("rails.encrypted", large, salt: "l"), salt: "l").payload == large

[["dev/no/key", "rails.verifier", {}, "not_found"], ["dev/shop/rails", "django.signer", {}, "unsupported"],
 ["dev/shop/rails", "rails.verifier", { salt: "\xff" }, "invalid"]].each do |name, format, params, code|
  error = raises(Claviger::Error) { Claviger::Key.new(name, socket: SERVER).protect(format, "x", **params) }
  check "refusal of #{name} #{format}: #{error.inspect}", error&.code == code && !error.is_a?(Claviger::Unavailable)
end

work = lambda do |n|
  20.times.all? do |i|
    key.unprotect("rails.verifier", key.protect("rails.verifier", "#{n}-#{i}", salt: "m"), salt: "m").payload == "#{n}-#{i}"
  end
end
children = 3.times.map { |n| fork { exit!(work.call(n) ? 0 : 1) } }
check "while forks work", work.call(10)
check "forks", children.all? { |pid| Process.wait2(pid).last.success? }
check "threads", 4.times.map { |n| Thread.new { work.call(n) } }.all?(&:value)
fibers = 3.times.map { |n| Fiber.new { 5.times { Fiber.yield(work.call(n)) } } }
check "fibers", 5.times.all? { fibers.all?(&:resume) }

began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
check "deadline", raises(Claviger::Unavailable) { fake(["HTTP/1.1 200 OK\r\n"], timeout: 0.1).unprotect("f", "t") }
check "deadline in time", Process.clock_gettime(Process::CLOCK_MONOTONIC) - began < 1.5

# An answer that comes after its call was given up is not the next one's.
late = fake([answer('{"items":')], [answer(NOT_VALID)])
check "interrupted", raises(Timeout::Error) { Timeout.timeout(0.1) { fake(["HTTP/1.1 200 OK\r\n"]).unprotect("f", "t") } }
check "answer cut short", raises(Claviger::Unavailable) { late.unprotect("f", "t") }

# What nobody asked for is not the next call's answer.
YES = '{"items":[{"ok":true,"version":2}]}'
more = fake([answer(NOT_VALID) + answer(NOT_VALID)], [answer(YES)])
check "more than was asked for", more.unprotect("f", "t").nil? && more.unprotect("f", "t").version == 2

gone = fake([answer(NOT_VALID), nil], [answer(NOT_VALID)])
check "kept connection that is gone", 2.times.all? { gone.unprotect("f", "t").nil? }
check "new connection that is gone", raises(Claviger::Unavailable) { fake([nil], [answer(NOT_VALID)]).unprotect("f", "t") }

chunks = "5\r\n#{NOT_VALID[0, 5]}\r\n#{(NOT_VALID.size - 5).to_s(16)};x=y\r\n#{NOT_VALID[5..]}\r\n0\r\n\r\n"
chunked = fake([answer(chunks, "Transfer-Encoding: chunked"), answer(NOT_VALID, "Content-Length: 14", "Connection: close")], [answer(NOT_VALID)])
check "chunked", 3.times.all? { chunked.unprotect("f", "t").nil? }

[
  "\r\n\r\n", "220 smtp ready\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "\xff\xff\r\n\r\n", "HTTP/1.1 200 OK\r\n\xff\r\n\r\n",
  answer("not json"), answer("[]"), answer("{}"), answer('{"items":[]}'), answer('{"items":[1]}'), answer('{"items":[{"ok":true}]}'),
  answer('{"items":[{"ok":true,"version":1,"payload":"!"}]}'), answer('{"items":[{"ok":true,"version":1,"payload":7}]}'),
  answer("", "Content-Length: -1"), answer("", "Content-Length: 99999999999"),
  answer("fffffff\r\n", "Transfer-Encoding: chunked"), answer("-5\r\n", "Transfer-Encoding: chunked"),
].each do |text|
  check "strange answer #{text.inspect}", raises(Claviger::Unavailable) { fake([text.b], timeout: 0.3).unprotect("f", "t") }
end

swallowed = raises(Claviger::Unavailable) do
  Claviger.watching { raises(Claviger::Error) { Claviger::Key.new("k", socket: "/nowhere").unprotect("f", "t") } }
end
check "an error that is swallowed comes out", swallowed
