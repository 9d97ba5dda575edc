# frozen_string_literal: true

require "json"
require "socket"

# Makes and checks tokens with a machine key that is in custody.
#
# A Key speaks to the server's local socket; the kernel tells the server which
# uid calls. No key material ever reaches this process. Every way in which custody
# can be away is an Error, never a token that counts as wrong: a framework that
# takes it for a bad signature would log its users out.
module Claviger
  SOCKET = "/run/claviger/claviger.sock"

  # Custody refused the call or could not do it. code is one of the API's.
  class Error < StandardError
    attr_reader :code

    def initialize(code, message, hint = "")
      super(hint.to_s.empty? ? message : "#{message}: #{hint}")
      @code = code
    end
  end

  # Custody is away, or cannot answer now. Nothing was signed or checked.
  class Unavailable < Error; end

  # A token that is valid: its payload, the version of the key that made it, and
  # whether it should be made again because a newer version makes them now.
  Token = Struct.new(:payload, :version, :renew)

  # What happened to the calls within watching: whether a token by an older version
  # was taken, and the Error of one, even when a framework swallowed it.
  Seen = Struct.new(:renew, :error)

  # Returns what the block does, and whether a token by an older version was taken
  # in it. An Error that was swallowed inside is raised again.
  def self.watching
    before, seen = Thread.current[:claviger_seen], Seen.new
    Thread.current[:claviger_seen] = seen
    value = yield
    raise seen.error if seen.error
    [value, seen.renew]
  ensure
    before.error ||= seen.error if before
    Thread.current[:claviger_seen] = before
  end

  # A machine key by its name. Safe for threads, fibers and across fork: each fiber
  # of each process has one connection of its own, which is kept open.
  class Key
    attr_reader :name

    # socket is the path of the server's; timeout, in seconds, bounds one call with
    # everything in it.
    def initialize(name, socket: SOCKET, timeout: 2.0)
      @name, @path, @timeout, @slot = name, socket.to_s, timeout, :"claviger #{socket}"
    end

    # Returns the token of a payload. The parameters are those of the format, as the
    # API names them.
    def protect(format, payload, **params)
      call("Protect", format, params, payloads: [[payload].pack("m0")]) { |answer| answer.fetch("tokens").fetch(0).unpack1("m0") }
    end

    # Returns the Token, or nil when it is not valid, for whatever reason. With
    # expired, one that has ended is opened too.
    def unprotect(format, token, expired: false, **params)
      found = call("Unprotect", format, params, tokens: [[token].pack("m0")], expired: expired) do |answer|
        item = answer.fetch("items").fetch(0)
        Token.new(item.fetch("payload", "").unpack1("m0"), item.fetch("version"), item.fetch("renew", false)) if item["ok"]
      end
      seen = Thread.current[:claviger_seen]
      seen.renew = true if seen && found&.renew
      found
    end

    private

    def call(method, format, params, **rest)
      status, headers, text = exchange(method, JSON.generate({ key: @name, format: format, params: params, **rest }))
      begin
        answer = JSON.parse(text)
        return yield(answer) if status == 200
        code = headers["claviger-code"] || answer["code"] || "internal"
        message = "custody answered for #{@name}: #{answer["message"] || code}"
      rescue JSON::ParserError, KeyError, IndexError, NoMethodError, TypeError, ArgumentError
        raise Unavailable.new("unavailable", "what answers at #{@path} is not Claviger")
      end
      kind = %w[unavailable stale deadline].include?(code) ? Unavailable : Error
      raise kind.new(code, message, headers["claviger-hint"])
    rescue JSON::GeneratorError, EncodingError
      raise Error.new("invalid", "a parameter of #{format} is no text in UTF-8")
    rescue Error => error
      seen = Thread.current[:claviger_seen]
      seen.error = error if seen
      raise
    end

    def exchange(method, body)
      deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + @timeout
      request = "POST /claviger.v1.StateService/#{method} HTTP/1.1\r\nHost: claviger\r\n" \
                "Content-Type: application/json\r\nContent-Length: #{body.bytesize}\r\n\r\n#{body}".b
      begin
        connection = kept
        reused = !connection.nil?
        connection ||= Connection.new(@path)
        # Only a whole answer leaves the connection for the next call: one that is
        # cut short, by whatever, may still come.
        Thread.current[@slot] = nil
        answer = connection.exchange(request, deadline)
        Thread.current[@slot] = [Process.pid, connection] unless answer[1]["connection"] == "close"
        answer
      rescue SystemCallError, IOError, SocketError, ArgumentError => error
        connection&.close
        # The server closes connections that are idle: a kept one may be gone, a new
        # one not. A call may be sent twice without harm.
        retry if reused && Process.clock_gettime(Process::CLOCK_MONOTONIC) < deadline
        raise Unavailable.new("unavailable", "custody does not answer at #{@path} (#{error.message})",
                              "start claviger, or see that this process may reach its socket; nothing was signed or checked")
      ensure
        connection&.close if Thread.current[@slot].nil?
      end
    end

    # Returns this fiber's connection, unless it is a fork's copy of the parent's,
    # who goes on with it, or has something to say that nobody asked for.
    def kept
      pid, connection = Thread.current[@slot]
      return connection if pid == Process.pid && connection.quiet?
      Thread.current[@slot] = nil
      connection&.close
      nil
    end
  end

  # HTTP/1.1 over one socket.
  class Connection
    MOST = 8 << 20 # bytes of an answer; a token has at most 1 MiB

    def initialize(path)
      @buffer = String.new(encoding: Encoding::BINARY)
      @socket = Socket.new(:UNIX, :STREAM)
      @socket.connect_nonblock(Socket.sockaddr_un(path))
    rescue StandardError
      @socket&.close
      raise
    end

    def close
      @socket.close
    end

    # Whether nothing came that nobody asked for: the next answer would begin with it.
    def quiet?
      @buffer.empty? && !@socket.wait_readable(0)
    end

    # Returns the status, the headers and the body that answer a request.
    def exchange(request, deadline)
      write(request, deadline)
      first, *lines = upto("\r\n\r\n", deadline).split("\r\n")
      status = Integer(first.to_s.split(" ", 3)[1].to_s, 10)
      headers = lines.to_h { |line| line.split(":", 2).then { |name, value| [name.downcase, value.to_s.strip] } }
      return [status, headers, take(Integer(headers["content-length"].to_s, 10), deadline)] unless headers["transfer-encoding"] == "chunked"
      body = +""
      loop do
        size = Integer(upto("\r\n", deadline)[/\A\h+/].to_s, 16)
        raise IOError, "the answer is too long" if body.bytesize + size > MOST
        body << take(size, deadline)
        upto("\r\n", deadline)
        return [status, headers, body] if size.zero?
      end
    end

    private

    def write(data, deadline)
      until data.empty?
        case sent = @socket.write_nonblock(data, exception: false)
        when :wait_writable then wait(:wait_writable, deadline)
        else data = data.byteslice(sent..-1)
        end
      end
    end

    def more(deadline)
      case data = @socket.read_nonblock(65_536, exception: false)
      when :wait_readable then wait(:wait_readable, deadline)
      when nil then raise IOError, "the connection was closed"
      else
        @buffer << data
        raise IOError, "the answer is too long" if @buffer.bytesize > MOST
      end
    end

    def wait(what, deadline)
      left = deadline - Process.clock_gettime(Process::CLOCK_MONOTONIC)
      raise IOError, "it took too long" unless left.positive? && @socket.public_send(what, left)
    end

    def upto(mark, deadline)
      more(deadline) until (at = @buffer.index(mark))
      head = @buffer.slice!(0, at + mark.bytesize)
      head.byteslice(0, at)
    end

    def take(size, deadline)
      raise IOError, "the answer is too long" unless size.between?(0, MOST)
      more(deadline) while @buffer.bytesize < size
      @buffer.slice!(0, size)
    end
  end
  private_constant :Connection, :Seen
end
