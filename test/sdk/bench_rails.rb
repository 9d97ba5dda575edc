# Measures what a request to Rails costs with its cookies made and checked in
# custody, next to local ones, in one run: /usr/bin/ruby test/sdk/bench_rails.rb [BIN]
#
# Two processes, one of each kind, answer requests in turns, so that both meet the
# same machine. It prints the median request of each, the 10th percentile, which a
# busy machine disturbs least, and the ratios.

require "etc"
require "securerandom"
require "tmpdir"

ENV["RAILS_ENV"] = "production"
BIN = File.expand_path(ARGV.shift || "bin")
KEY_NAME = "dev/shop/rails"
ROUNDS = 60 # of 10 requests
PAGES = { "page" => "page", "page that changes the session" => "add" }
$LOAD_PATH.unshift File.expand_path("../../sdk/ruby/lib", __dir__)

def now
  Process.clock_gettime(Process::CLOCK_MONOTONIC)
end

# Starts a process that answers "path count" with the seconds of that many requests.
def serve(mode, directory, socket, secret)
  mine, theirs = IO.pipe, IO.pipe
  parent = Process.pid
  child = fork do
    theirs[0].close
    $secret = secret if mode == "local"
    ARGV.replace([mode, directory, "json", KEY_NAME, socket])
    require_relative "testdata/rails_app"
    require "rack/mock"
    site = Rack::MockRequest.new(start)
    site.get("/sign") # makes the user
    cookie = site.get("/login").original_headers["Set-Cookie"][/\A[^;]+/]
    loop do
      path, count = mine[0].gets.split
      times = Array.new(Integer(count)) do
        began = now
        response = site.get("/#{path}", "HTTP_COOKIE" => cookie)
        abort "#{path}: #{response.status}" unless response.status == 200
        now - began
      end
      theirs[1].puts Marshal.dump(times).unpack1("H*")
      theirs[1].flush
    end
  end
  theirs[1].close
  at_exit { Process.kill("KILL", child) if Process.pid == parent }
  lambda do |path, count|
    mine[1].puts "#{path} #{count}"
    mine[1].flush
    Marshal.load([theirs[0].gets.chomp].pack("H*"))
  end
end

def compare(title, path, sites)
  times = sites.transform_values { [] }
  (ROUNDS + 1).times do |round|
    sites.each do |mode, site|
      got = site.call(path, 10)
      times[mode].concat(got) if round.positive? # the first round warms up
    end
  end
  { "median" => 0.5, "10th percentile" => 0.1 }.each do |name, part|
    local, custody = times.values.map { |t| t.sort[(t.size * part).floor] * 1e6 }
    puts format("%-30s %-16s %9.0f %11.0f %7.2f", title, name, local, custody, custody / local)
  end
end

def check_time(socket)
  require "claviger"
  key = Claviger::Key.new(KEY_NAME, socket: socket)
  token = key.protect("rails.verifier", "x", salt: "mail")
  times = Array.new(500) { now.then { |began| key.unprotect("rails.verifier", token, salt: "mail") && now - began } }
  times.sort[250] * 1e6
end

Dir.mktmpdir do |directory|
  claviger = File.join(BIN, "claviger")
  server = IO.popen([claviger, "dev", "--dir", directory, "--listen", "", "--quiet", err: File::NULL])
  begin
    socket = server.gets.strip.delete_prefix("export CLAVIGER_ADDR=unix://")
    secret = SecureRandom.hex(32)
    pin = File.read(File.join(directory, "identity")).strip
    IO.popen([claviger, "--address", "unix://#{socket}", "state", "adopt", KEY_NAME, "--set", "rails", "--pin", pin, out: File::NULL], "w") { |io| io << secret }
    sites = %w[local custody].to_h { |mode| [mode, serve(mode, Dir.mktmpdir(mode, directory), socket, secret)] }
    puts format("%-30s %-16s %9s %11s %7s", "request", "", "local us", "custody us", "ratio")
    PAGES.each { |title, path| compare(title, path, sites) }
    puts format("one check over the socket: %.0f us; load %s on %d cores", check_time(socket), File.read("/proc/loadavg")[/\A\S+/], Etc.nprocessors)
  ensure
    Process.kill("TERM", server.pid)
    server.close
  end
end
