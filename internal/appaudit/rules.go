package appaudit

import "regexp"

// The texts say what holds for the adapters of this release: sdk/python,
// sdk/ruby and sdk/php, with the secret in custody and a random one in its place.

const (
	random = "it sees the random secret of this start: what it makes is refused by every other process and after a restart, and what is out is refused now"
	ownKey = "give it a key of its own, in custody or out of it; not the application's"
)

func django() language {
	re := regexp.MustCompile
	return language{
		suffixes: []string{".py"}, comments: []string{"#"},
		own: re(`(^|/)django/(core/signing|core/checks/security/base|conf/(__init__|global_settings)|utils/crypto|contrib/auth/(tokens|base_user)|contrib/sessions/backends/\w+|contrib/messages/storage/cookie|http/(request|response))\.py$|(^|/)claviger/\w+\.py$`),
		rules: []rule{
			{"settings.SECRET_KEY", Breaks, re(`\bsettings\s*\.\s*SECRET_KEY(_FALLBACKS)?\b|getattr\(\s*settings\s*,\s*['"]SECRET_KEY`), re(`jwt\s*\.\s*(en|de)code|Signer\(`), "the secret is read: " + random, ownKey},
			{"settings.SECRET_KEY in a signer", Breaks, re(`Signer\(.*\bSECRET_KEY`), nil, "a signer is given the secret: " + random, "leave the key out: a Signer without one signs in custody"},
			{"Signer(key=)", Unsure, re(`\b(Timestamp)?Signer\(\s*(key\s*=|['"])`), re(`SECRET_KEY`), "a signer with a key of its own: the adapter leaves it where it is", "look where that key stands, and adopt it as a key of its own"},
			{"signing.dumps(key=)", Unsure, re(`signing\.(dumps|loads)\(.*\bkey\s*=`), nil, "a key of its own is given: the adapter leaves it where it is", "leave the key out, or adopt it as a key of its own"},
			{"SIGNING_BACKEND", Unsure, re(`\bSIGNING_BACKEND\s*=`), nil, "cookies are signed by a class of its own; one that is no TimestampSigner is refused with an error", "look at the class: what derives from TimestampSigner and replaces neither signature nor unsign is covered"},
			{"jwt.encode", Breaks, re(`jwt\s*\.\s*(en|de)code\(.*SECRET_KEY`), nil, "a JWT is made with the secret: " + random, "give it a machine key of the set jwt-hs, or sign JWTs with a signing key ('claviger key create --algorithm ed25519')"},
			{"jwt.encode with a key", Unsure, re(`jwt\s*\.\s*(en|de)code\(`), re(`SECRET_KEY`), "a JWT is made or checked: if its key is the application's secret, it breaks", "look where the key comes from"},
			{"SIMPLE_JWT", Unsure, re(`\b(SIMPLE_JWT|JWT_AUTH|NINJA_JWT|GRAPHQL_JWT)\b\s*[=:]`), nil, "these packages sign with SECRET_KEY unless SIGNING_KEY says otherwise: " + random, "set their SIGNING_KEY to a key of their own"},
			{"salted_hmac(secret=)", Unsure, re(`salted_hmac\(.*\bsecret\s*=`), nil, "a secret of its own is given: custody has no part in it", "leave it out, or adopt that secret as a key of its own"},
			{"hmac.new", Unsure, re(`\bhmac\.(new|digest)\(`), nil, "an HMAC that is no part of Django's signing", "look where its key comes from: the application's secret is not there any more"},
			{"Fernet", Unsure, re(`\bFernet\(|\bMultiFernet\(`), nil, "an encryption of its own; packages derive its key from SECRET_KEY, and what they encrypted cannot be read without it", "look where its key comes from, before the secret is removed"},
			{"PickleSerializer", Danger, re(`PickleSerializer`), nil, "sessions are pickled: whoever has the secret runs code. Custody checks them first; after an exposure give them no grace", "use the JSON serializer"},
			{"SECRET_KEY from the environment", Unsure, re(`(environ|getenv|env|config)\s*(\.\w+)?[\[(]\s*['"]\w*SECRET_KEY`), nil, "the secret is read from the environment here", "adopt it from where the environment is set, and make the change in the guide here"},
		},
	}
}

func rails() language {
	re := regexp.MustCompile
	return language{
		suffixes: []string{".rb", ".rake", ".erb", ".ru"}, comments: []string{"#"},
		own: re(`(^|/)(actionpack|activesupport|railties|activerecord|activestorage|actioncable|actionmailbox|globalid)-[\d.]+/|(^|/)claviger/\w+\.rb$`),
		rules: []rule{
			{"secret_key_base", Breaks, re(`\bsecret_key_base\b`), re(`^\s*config\.secret_key_base\s*=\s*nil`), "the secret is read or set: it is not there any more, and a random one is in its place", "use Rails.application.message_verifier or key_generator, which are covered; or give it a key of its own"},
			{"secret_token", Breaks, re(`\bsecret_token\b`), nil, "a secret of Rails 3: it is in no recipe set", "give it a key of its own"},
			{"key_generator", Unsure, re(`\bkey_generator\b|KeyGenerator\.new`), re(`message_verifier`), "a key is derived: generate_key returns a handle, which verifiers and encryptors take, and nothing else does", "look who takes it: an OpenSSL cipher or a JWT library needs bytes, and gets a key of its own"},
			{"MessageVerifier.new", Unsure, re(`MessageVerifier\.new\(`), re(`key_generator|generate_key`), "a verifier with a secret of its own: custody has no part in it, unless it is a handle", "use Rails.application.message_verifier(name), or adopt that secret as a key of the set rails-verifier"},
			{"MessageEncryptor.new", Unsure, re(`MessageEncryptor\.new\(`), re(`key_generator|generate_key`), "an encryptor with a key of its own: custody has no part in it, unless it is a handle", "give it the handle of key_generator.generate_key, or keep its key as it is"},
			{"cookies_serializer :marshal", Danger, re(`cookies_serializer\s*=\s*:(marshal|hybrid)`), nil, "cookies are Marshal: whoever has the secret runs code. Custody checks them first; after an exposure give them no grace", "use :json, by way of :hybrid"},
			{"Marshal.load", Danger, re(`\bMarshal\.(load|restore)\b`), nil, "an object is made of what is read: if only a signature stands before it, an exposure of the secret runs code", "use JSON"},
			{"message serializer", Danger, re(`serializer\s*[:=]>?\s*:?(marshal|Marshal)\b|message_serializer\s*=\s*:marshal`), re(`cookies_serializer`), "messages are Marshal: whoever has the secret runs code", "use :json_allow_marshal on the way to :json"},
			{"encrypts", Unsure, re(`^\s*encrypts\s+:`), nil, "an encrypted column has keys of its own (active_record_encryption), which are not the secret", "leave them where they are; with deterministic keys derived from secret_key_base, move those first"},
			{"devise", Unsure, re(`config\.(secret_key|pepper)\s*=|Devise\.secret_key`), nil, "Devise derives its tokens from secret_key, which is secret_key_base when it is not set", "set it to a secret of its own; links in mails that are out end with that"},
			{"JWT", Unsure, re(`\bJWT\.(en|de)code\b`), nil, "a JWT is made or checked: if its key is the application's secret, it breaks", "look where the key comes from; a machine key of the set jwt-hs does it in custody"},
			{"OpenSSL::HMAC", Unsure, re(`OpenSSL::(HMAC|Cipher)\b`), nil, "an HMAC or a cipher of its own", "look where its key comes from: the application's secret is not there any more"},
			{"rotate", Unsure, re(`cookies_rotations|\.rotate\(?\s*(secret_key_base|['"])`), nil, "an older secret is named: the application refuses to start with it", "adopt it first, as an older version, and remove the line"},
		},
	}
}

func laravel() language {
	re := regexp.MustCompile
	return language{
		suffixes: []string{".php"}, comments: []string{"//", "#"},
		own: re(`(^|/)vendor/(laravel/(framework|serializable-closure)|illuminate|claviger)/|(^|/)Illuminate/|^(\w+/)*storage/framework/`),
		rules: []rule{
			{"config('app.key')", Breaks, re(`config\(\s*['"]app\.(previous_)?keys?['"]|Config::get\(\s*['"]app\.(previous_)?keys?['"]|config\[\s*['"]app\.key['"]`), nil, "the key is read: " + random, ownKey},
			{"env('APP_KEY')", Breaks, re(`(env|getenv)\(\s*['"]APP_(KEY|PREVIOUS_KEYS)['"]|\$_(ENV|SERVER)\[\s*['"]APP_KEY['"]`), re(`['"](previous_)?keys?['"]\s*=>`), "the key is read from the environment, where it is not any more", ownKey},
			{"config/app.php", Unsure, re(`['"](previous_)?keys?['"]\s*=>.*APP_(KEY|PREVIOUS_KEYS)`), nil, "the configuration takes the key from the environment: the entry is empty once APP_KEY is removed", "nothing, if this is config/app.php"},
			{"new Encrypter", Unsure, re(`new\s+\\?(Illuminate\\Encryption\\)?Encrypter\(`), nil, "an encrypter with a key of its own: custody has no part in it", "use Crypt or app('encrypter'), which are covered, or keep its key as it is"},
			{"getKey", Breaks, re(`(encrypter|Crypt|crypt)[\w'"()]*\s*(->|::)\s*get(Key|AllKeys|PreviousKeys)\(`), nil, "the key's bytes are asked for: the adapter has none and ends in an error", "use the encrypter's own methods, or give it a key of its own"},
			{"hash_hmac", Unsure, re(`hash_hmac\(`), re(`app\.key`), "an HMAC of its own", "look where its key comes from: the application's key is not there any more"},
			{"hash_hmac with the key", Breaks, re(`hash_hmac\(.*app\.key`), nil, "an HMAC under the key: " + random, "use URL::signedRoute or Crypt, which are covered, or a key of its own"},
			{"openssl_encrypt", Unsure, re(`openssl_(en|de)crypt\(|sodium_crypto_(secretbox|aead\w*)\(`), nil, "an encryption of its own", "look where its key comes from, before the key is removed"},
			{"JWT", Unsure, re(`\bJWT::(en|de)code\(|JWT_SECRET`), nil, "a JWT is made or checked: if its key is the application's, it breaks", "look where the key comes from; a machine key of the set jwt-hs does it in custody"},
			{"unserialize", Danger, re(`\bunserialize\(`), re(`allowed_classes['"]?\s*=>\s*false`), "an object is made of what is read: if only the key stands before it, an exposure of the key runs code", "use JSON, or allowed_classes => false"},
			{"encrypt()", Danger, re(`(\bCrypt::encrypt|(^|[^\w>:$])encrypt)\(`), re(`encryptString|,\s*false\s*\)`), "encrypt() serialises: whoever has the key has objects made when it is read. Covered; after an exposure give it no grace", "use encryptString for texts"},
			{"EncryptCookies", Unsure, re(`class\s+\w+\s+extends\s+\\?(Illuminate\\Cookie\\Middleware\\|Middleware\b|BaseEncrypter|EncryptCookies)`), re(`Claviger`), "a middleware of the application may be its own EncryptCookies: up to Laravel 10 it must extend that of the adapter", "extend Claviger\\Laravel\\EncryptCookies there"},
			{"serialize in cookies", Danger, re(`static\s+\$serialize\s*=\s*true`), nil, "cookies are serialised: whoever has the key has objects made when they are read. After an exposure give them no grace", "remove it"},
		},
	}
}
